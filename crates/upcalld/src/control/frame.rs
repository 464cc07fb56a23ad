//! The wire: JSON-RPC 1.0 objects one behind the other, as `ovs-appctl` speaks to `ovs-vswitchd`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Longest request in bytes. The longest sensible one has a few hundred.
pub(crate) const REQUEST_BYTES_MAX: usize = 64 << 10;

/// What a client asks.
#[derive(Debug, Deserialize)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) params: Vec<Value>,
    pub(crate) id: Value,
}

/// The answer: a result or an error, the other is null.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Reply {
    pub(crate) id: Value,
    pub(crate) result: Value,
    pub(crate) error: Value,
}

/// Why bytes are no request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Bad {
    #[error("the request is longer than {REQUEST_BYTES_MAX} bytes")]
    Oversized,
    #[error("this is no JSON-RPC request: {0}")]
    Malformed(String),
}

/// Cuts a stream of bytes into requests. Each byte is looked at once, however the stream is cut.
#[derive(Debug, Default)]
pub(crate) struct Framer {
    bytes: Vec<u8>,
    /// Bytes that were looked at.
    seen: usize,
    depth: u32,
    in_string: bool,
    escaped: bool,
}

impl Framer {
    /// Is nothing of a request there?
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Adds what was read.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next request, if it is whole.
    pub(crate) fn next(&mut self) -> Result<Option<Request>, Bad> {
        if self.depth == 0 {
            let blank = self.bytes.iter().take_while(|b| b.is_ascii_whitespace()).count();
            self.bytes.drain(..blank);
            if self.bytes.first().is_some_and(|first| *first != b'{') {
                return Err(Bad::Malformed("it does not begin with '{'".to_owned()));
            }
        }
        let Some(end) = self.end() else {
            let long = self.bytes.len() > REQUEST_BYTES_MAX;
            return if long { Err(Bad::Oversized) } else { Ok(None) };
        };
        let rest = self.bytes.split_off(end);
        let object = std::mem::replace(&mut self.bytes, rest);
        self.seen = 0;
        if object.len() > REQUEST_BYTES_MAX {
            return Err(Bad::Oversized);
        }
        let malformed = |err: serde_json::Error| Bad::Malformed(err.to_string());
        let request: Request = serde_json::from_slice(&object).map_err(malformed)?;
        if request.id.is_null() {
            return Err(Bad::Malformed("its id is null, so nobody waits for an answer".to_owned()));
        }
        Ok(Some(request))
    }

    /// The end of the first object, if it is there.
    fn end(&mut self) -> Option<usize> {
        while let Some(byte) = self.bytes.get(self.seen) {
            self.seen += 1;
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_string => self.escaped = true,
                b'"' => self.in_string = !self.in_string,
                _ if self.in_string => {}
                b'{' => self.depth += 1,
                b'}' => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return Some(self.seen);
                    }
                }
                _ => {}
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(framer: &mut Framer) -> Vec<String> {
        let mut methods = Vec::new();
        while let Some(request) = framer.next().unwrap() {
            methods.push(request.method);
        }
        methods
    }

    #[test]
    fn requests_are_found_however_the_stream_is_cut() {
        let text =
            br#" {"method":"a}\"{","params":["{"],"id":0}{"id":"x","params":[],"method":"b"} "#;
        let mut whole = Framer::default();
        whole.push(text);
        assert_eq!(all(&mut whole), ["a}\"{", "b"]);
        assert!(whole.is_empty());
        let (mut cut, mut methods) = (Framer::default(), Vec::new());
        for byte in text {
            cut.push(&[*byte]);
            methods.extend(all(&mut cut));
        }
        assert_eq!(methods, ["a}\"{", "b"]);
    }

    #[test]
    fn what_is_no_request_is_told() {
        for (text, why) in [
            ("[]", "begin with '{'"),
            ("{\"method\":1}", "string"),
            ("{\"id\":0,\"result\":\"\",\"error\":null}", "missing field"),
            ("{\"method\":\"a\",\"params\":[],\"id\":null}", "null"),
            ("{}}", "missing field"),
            ("}", "begin with '{'"),
        ] {
            let mut framer = Framer::default();
            framer.push(text.as_bytes());
            let err = framer.next().unwrap_err().to_string();
            assert!(err.contains(why), "{text}: {err}");
        }
    }

    #[test]
    fn deep_and_long_ones_are_refused() {
        let mut framer = Framer::default();
        framer.push(br#"{"method":"a","id":0,"params":"#);
        framer.push("[".repeat(10_000).as_bytes());
        framer.push("]".repeat(10_000).as_bytes());
        framer.push(b"}");
        assert!(matches!(framer.next(), Err(Bad::Malformed(_))));
        let mut framer = Framer::default();
        framer.push(b"{\"method\":\"");
        framer.push("a".repeat(REQUEST_BYTES_MAX).as_bytes());
        assert_eq!(framer.next().unwrap_err(), Bad::Oversized);
    }
}
