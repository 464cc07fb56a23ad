//! What the host tells the guest (the plan) and what the guest tells the host (frames).

use std::fmt;

/// Where the host puts the plan in the initramfs.
pub const PLAN_PATH: &str = "/plan";
/// The virtio port over which frames travel. Written in whole buffers, where a serial port takes
/// one trap for each byte.
pub const PORT_PATH: &str = "/dev/vport0p1";
/// First byte of each frame: a stream that has lost step is noticed instead of misread.
const MAGIC: u8 = 0xA5;
const HEADER_BYTES: usize = 6;
/// Longest payload of one frame.
pub const PAYLOAD_BYTES_MAX: usize = 64 * 1024;

/// A module to load, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Path in the guest.
    pub path: String,
    /// Parameters, as `modprobe` takes them.
    pub params: String,
    /// Whether the run is pointless without it.
    pub required: bool,
}

/// One program to run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Job {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// Killed after this many seconds; 0 means never.
    pub limit_s: u32,
}

/// Everything PID 1 has to do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Loaded first to last.
    pub modules: Vec<Module>,
    /// Files below `/proc/sys` and what to write into them.
    pub sysctls: Vec<(String, String)>,
    /// Run one after the other.
    pub jobs: Vec<Job>,
}

/// A plan or a frame that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed(String);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Malformed {}

impl Plan {
    /// NUL-terminated records, the first byte of each its kind: no argument can hold a NUL, so
    /// nothing needs an escape.
    ///
    /// # Errors
    /// A string that holds a NUL.
    pub fn encode(&self) -> Result<Vec<u8>, Malformed> {
        let mut out = Vec::new();
        for module in &self.modules {
            let kind = if module.required { b'M' } else { b'm' };
            record(&mut out, kind, &format!("{}={}", module.path, module.params))?;
        }
        for (key, value) in &self.sysctls {
            record(&mut out, b'S', &format!("{key}={value}"))?;
        }
        for job in &self.jobs {
            record(&mut out, b'J', &job.limit_s.to_string())?;
            for (key, value) in &job.env {
                record(&mut out, b'E', &format!("{key}={value}"))?;
            }
            for arg in &job.argv {
                record(&mut out, b'A', arg)?;
            }
        }
        Ok(out)
    }

    /// The reverse of [`Plan::encode`].
    ///
    /// # Errors
    /// Any record that `encode` would not have written.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let text = std::str::from_utf8(bytes).map_err(|e| Malformed(format!("plan: {e}")))?;
        let mut plan = Self::default();
        for entry in text.split_terminator('\0') {
            let mut chars = entry.chars();
            let kind = chars.next().unwrap_or('\0');
            plan.take(kind, chars.as_str())
                .ok_or_else(|| Malformed(format!("plan: record {entry:?} makes no sense")))?;
        }
        Ok(plan)
    }

    fn take(&mut self, kind: char, value: &str) -> Option<()> {
        let pair = || value.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()));
        match kind {
            'M' | 'm' => {
                let (path, params) = pair()?;
                self.modules.push(Module { path, params, required: kind == 'M' });
            }
            'S' => self.sysctls.push(pair()?),
            'J' => self.jobs.push(Job { limit_s: value.parse().ok()?, ..Job::default() }),
            'E' => self.jobs.last_mut()?.env.push(pair()?),
            'A' => self.jobs.last_mut()?.argv.push(value.to_owned()),
            _ => return None,
        }
        Some(())
    }
}

fn record(out: &mut Vec<u8>, kind: u8, value: &str) -> Result<(), Malformed> {
    if value.contains('\0') {
        return Err(Malformed(format!("plan: {value:?} holds a NUL byte")));
    }
    out.push(kind);
    out.extend_from_slice(value.as_bytes());
    out.push(0);
    Ok(())
}

/// One message from the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// The modules are in; the kernel release.
    Ready(String),
    /// A job begins: its index in the plan.
    Start(u32),
    /// Standard output of the running job.
    Stdout(Vec<u8>),
    /// Standard error of the running job.
    Stderr(Vec<u8>),
    /// The job ended: its exit status, 128 + signal, 124 for its time limit, 126/127 as a shell has it.
    Exit(i32),
    /// Something a person may want to know.
    Note(String),
    /// The guest could not be prepared, and why; no job has run.
    Failed(String),
    /// All jobs are done.
    Done,
}

impl Frame {
    /// Bytes for the port. A payload over the limit is cut: output is sent in smaller pieces.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let (kind, payload): (u8, &[u8]) = match self {
            Self::Ready(text) => (b'R', text.as_bytes()),
            Self::Start(index) => (b'S', &index.to_le_bytes()),
            Self::Stdout(bytes) => (b'1', bytes),
            Self::Stderr(bytes) => (b'2', bytes),
            Self::Exit(code) => (b'X', &code.to_le_bytes()),
            Self::Note(text) => (b'N', text.as_bytes()),
            Self::Failed(text) => (b'F', text.as_bytes()),
            Self::Done => (b'D', &[]),
        };
        let payload = &payload[..payload.len().min(PAYLOAD_BYTES_MAX)];
        let mut out = Vec::with_capacity(HEADER_BYTES + payload.len());
        out.extend_from_slice(&[MAGIC, kind]);
        out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        out.extend_from_slice(payload);
        out
    }

    fn decode(kind: u8, payload: &[u8]) -> Result<Self, Malformed> {
        let text = || String::from_utf8_lossy(payload).into_owned();
        let word = || {
            <[u8; 4]>::try_from(payload)
                .map_err(|_| Malformed(format!("frame {kind:#x} of {} bytes", payload.len())))
        };
        Ok(match kind {
            b'R' => Self::Ready(text()),
            b'S' => Self::Start(u32::from_le_bytes(word()?)),
            b'1' => Self::Stdout(payload.to_vec()),
            b'2' => Self::Stderr(payload.to_vec()),
            b'X' => Self::Exit(i32::from_le_bytes(word()?)),
            b'N' => Self::Note(text()),
            b'F' => Self::Failed(text()),
            b'D' => Self::Done,
            _ => return Err(Malformed(format!("frame of unknown kind {kind:#x}"))),
        })
    }
}

/// Cuts a byte stream into frames.
#[derive(Debug, Default)]
pub struct Decoder {
    pending: Vec<u8>,
}

impl Decoder {
    /// Adds what was read from the port.
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// The next whole frame, if there is one.
    ///
    /// # Errors
    /// The stream is not one of frames: nothing after this can be trusted.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, Malformed> {
        let Some((header, rest)) = self.pending.split_at_checked(HEADER_BYTES) else {
            return Ok(None);
        };
        let length = u32::from_le_bytes([header[2], header[3], header[4], header[5]]) as usize;
        if header[0] != MAGIC || length > PAYLOAD_BYTES_MAX {
            return Err(Malformed(format!("lost step at header {header:02x?}")));
        }
        let Some(payload) = rest.get(..length) else { return Ok(None) };
        let frame = Frame::decode(header[1], payload)?;
        self.pending.drain(..HEADER_BYTES + length);
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            modules: vec![
                Module { path: "/ko/nsh.ko".into(), params: "a=1 b=2".into(), required: false },
                Module { path: "/ko/openvswitch.ko".into(), params: String::new(), required: true },
            ],
            sysctls: vec![("net/core/rmem_max".into(), "1=2".into())],
            jobs: vec![Job {
                argv: vec!["/bin/x".into(), String::new(), "a b\n\"c".into()],
                env: vec![("A".into(), "b=c".into())],
                limit_s: 9,
            }],
        }
    }

    #[test]
    fn a_plan_survives_the_way_into_the_guest() {
        let bytes = plan().encode().unwrap();
        assert_eq!(Plan::decode(&bytes).unwrap(), plan());
    }

    #[test]
    fn a_plan_refuses_what_it_cannot_carry() {
        let job = Job { argv: vec!["a\0b".into()], ..Job::default() };
        assert!(Plan { jobs: vec![job], ..Plan::default() }.encode().is_err());
        for bad in ["Aalone\0", "Jmany\0", "Sx\0", "?\0", "\0"] {
            assert!(Plan::decode(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    fn frames() -> Vec<Frame> {
        vec![
            Frame::Ready("6.12".into()),
            Frame::Start(3),
            Frame::Stdout(vec![0, MAGIC, 255]),
            Frame::Stderr(vec![]),
            Frame::Exit(-1),
            Frame::Note("n".into()),
            Frame::Failed("f".into()),
            Frame::Done,
        ]
    }

    #[test]
    fn frames_survive_any_cut_of_the_stream() {
        let bytes: Vec<u8> = frames().iter().flat_map(Frame::encode).collect();
        for step in 1..bytes.len() {
            let mut decoder = Decoder::default();
            let mut got = Vec::new();
            for chunk in bytes.chunks(step) {
                decoder.push(chunk);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    got.push(frame);
                }
            }
            assert_eq!(got, frames(), "step {step}");
        }
    }

    #[test]
    fn a_stream_that_lost_step_is_an_error() {
        for bad in
            [b"x1\0\0\0\0".as_slice(), b"\xa5?\0\0\0\0", b"\xa5X\x01\0\0\0z", b"\xa51\0\0\0\xff"]
        {
            let mut decoder = Decoder::default();
            decoder.push(bad);
            assert!(decoder.next_frame().is_err(), "{bad:02x?}");
        }
    }
}
