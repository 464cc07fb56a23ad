//! Reading text from left to right, and saying where it went wrong.

use crate::text::TextError;

/// Characters between attributes and between actions.
const DELIMITERS: [char; 5] = [',', ' ', '\t', '\r', '\n'];
/// Characters of the text that an error quotes.
const QUOTE_MAX: usize = 20;

/// A position in a text.
#[derive(Clone)]
pub(super) struct Cursor<'t> {
    text: &'t str,
    pos: usize,
    what: &'static str,
}

impl<'t> Cursor<'t> {
    pub(super) fn new(what: &'static str, text: &'t str) -> Self {
        Self { text, pos: 0, what }
    }

    /// What is left.
    pub(super) fn rest(&self) -> &'t str {
        &self.text[self.pos..]
    }

    pub(super) fn at_end(&self) -> bool {
        self.rest().is_empty()
    }

    /// An error at this position.
    pub(super) fn error(&self, expected: impl Into<String>) -> TextError {
        let found = match self.rest() {
            "" => "the end".into(),
            rest => format!("`{}`", rest.chars().take(QUOTE_MAX).collect::<String>()),
        };
        TextError { what: self.what, column: self.pos + 1, expected: expected.into(), found }
    }

    pub(super) fn skip_delimiters(&mut self) {
        let rest = self.rest();
        self.pos += rest.len() - rest.trim_start_matches(DELIMITERS).len();
    }

    /// Whether an attribute or action may end here.
    pub(super) fn at_boundary(&self) -> bool {
        self.rest().chars().next().is_none_or(|c| c == ')' || DELIMITERS.contains(&c))
    }

    /// Takes `token` if it is next.
    pub(super) fn eat(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.pos += token.len();
        }
        found
    }

    pub(super) fn expect(&mut self, token: &str) -> Result<(), TextError> {
        if self.eat(token) { Ok(()) } else { Err(self.error(format!("`{token}`"))) }
    }

    /// Takes the characters that `accept` takes.
    pub(super) fn take(&mut self, accept: impl Fn(char) -> bool) -> &'t str {
        let rest = self.rest();
        let end = rest.find(|c| !accept(c)).unwrap_or(rest.len());
        self.pos += end;
        &rest[..end]
    }

    /// Takes a name: lower-case letters, digits and `_`.
    pub(super) fn name(&mut self) -> &'t str {
        self.take(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    }

    /// Takes a decimal number, or a hexadecimal one behind `0x`, up to `max`.
    pub(super) fn number(&mut self, max: u64) -> Result<u64, TextError> {
        let start = self.clone();
        let value = if self.eat("0x") || self.eat("0X") {
            u64::from_str_radix(self.take(|c| c.is_ascii_hexdigit()), 16)
        } else {
            self.take(|c| c.is_ascii_digit()).parse()
        };
        match value {
            Ok(value) if value <= max => Ok(value),
            _ => Err(start.error(format!("a number up to {max}"))),
        }
    }

    /// Takes a hexadecimal number behind `0x`, or 0, of up to 128 bits.
    pub(super) fn wide_hex(&mut self) -> Result<u128, TextError> {
        let start = self.clone();
        let _ = self.eat("0x") || self.eat("0X");
        u128::from_str_radix(self.take(|c| c.is_ascii_hexdigit()), 16)
            .map_err(|_| start.error("a hexadecimal number up to 128 bits"))
    }

    /// Takes pairs of hexadecimal digits, with or without spaces between them.
    pub(super) fn hex_bytes(&mut self) -> Result<Vec<u8>, TextError> {
        let start = self.clone();
        let digits = self.take(|c| c.is_ascii_hexdigit() || c == ' ').as_bytes();
        let mut bytes = Vec::with_capacity(digits.len() / 2);
        for word in digits.split(|&c| c == b' ') {
            let (pairs, odd) = word.as_chunks::<2>();
            if !odd.is_empty() {
                return Err(start.error("pairs of hexadecimal digits"));
            }
            bytes.extend(pairs.iter().map(|&[high, low]| nibble(high) << 4 | nibble(low)));
        }
        Ok(bytes)
    }
}

/// The value of a hexadecimal digit.
fn nibble(digit: u8) -> u8 {
    (digit as char).to_digit(16).unwrap_or_default() as u8
}
