//! Reports for people: two columns, aligned, greppable, within 100 columns.

use std::fmt::Write;

pub(crate) const COLUMNS: usize = 100;
/// Where the second column starts.
pub(crate) const VALUE_AT: usize = 29;

pub(crate) fn heading(out: &mut String, title: &str) {
    let _ = writeln!(out, "\n{title}");
}

/// `first`, then words up to the right edge; further lines start at column `indent`.
pub(crate) fn wrapped(out: &mut String, first: &str, text: &str, indent: usize) {
    let mut line = first.to_owned();
    let mut empty = true;
    for word in text.split_whitespace() {
        if !empty && line.chars().count() + 1 + word.chars().count() > COLUMNS {
            let _ = writeln!(out, "{}", line.trim_end());
            line = " ".repeat(indent);
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line.push_str(word);
        empty = false;
    }
    let _ = writeln!(out, "{}", line.trim_end());
}

pub(crate) fn row(out: &mut String, name: &str, text: &str) {
    wrapped(out, &format!("  {name:<width$}", width = VALUE_AT - 2), text, VALUE_AT);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_wrapped_and_indented() {
        let mut out = String::new();
        wrapped(&mut out, "  name   ", &"word ".repeat(40), 9);
        assert!(out.lines().count() > 1);
        assert!(out.lines().all(|line| line.len() <= COLUMNS && !line.ends_with(' ')));
        assert!(out.lines().skip(1).all(|line| line.starts_with("         word")));
    }
}
