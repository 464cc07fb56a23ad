//! A byte stream cut into lines, for output that is both shown and read.

/// Longest line held back; more than that is passed on in pieces.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// Holds what is not yet a whole line.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    pending: Vec<u8>,
}

impl Lines {
    /// Hands each line that is whole now to `on_line`.
    pub(crate) fn push(&mut self, bytes: &[u8], on_line: &mut dyn FnMut(&str)) {
        self.pending.extend_from_slice(bytes);
        while let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
            on_line(&String::from_utf8_lossy(&self.pending[..end]));
            self.pending.drain(..=end);
        }
        if self.pending.len() > LINE_BYTES_MAX {
            self.flush(on_line);
        }
    }

    /// The rest, though no newline ended it.
    pub(crate) fn flush(&mut self, on_line: &mut dyn FnMut(&str)) {
        if !self.pending.is_empty() {
            on_line(&String::from_utf8_lossy(&std::mem::take(&mut self.pending)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_survive_any_cut() {
        let text = b"one\n\ntwo\nthree";
        for step in 1..text.len() {
            let (mut lines, mut got) = (Lines::default(), Vec::new());
            for chunk in text.chunks(step) {
                lines.push(chunk, &mut |line| got.push(line.to_owned()));
            }
            lines.flush(&mut |line| got.push(line.to_owned()));
            assert_eq!(got, ["one", "", "two", "three"]);
        }
    }

    #[test]
    fn an_endless_line_is_not_kept() {
        let (mut lines, mut count) = (Lines::default(), 0);
        for _ in 0..100 {
            lines.push(&[b'x'; 4096], &mut |_| count += 1);
        }
        assert!(count > 0 && lines.pending.len() <= LINE_BYTES_MAX);
    }
}
