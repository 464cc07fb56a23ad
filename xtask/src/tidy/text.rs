//! What a source file must say and must not hold.

use super::Finding;

const LINES_MAX: usize = 800;
const LINES_NOTED: usize = 500;
/// The one room with `unsafe`.
const UNSAFE_ROOM: &str = "crates/netlink-io/";

/// A crate's documentation opens with what it refuses.
pub(super) fn refusal(file: &str, content: &str) -> Option<Finding> {
    let doc: Vec<&str> =
        content.lines().map_while(|line| line.strip_prefix("//!")).map(str::trim).collect();
    let text = doc.join(" ");
    let sentences = text.split(['.', ':', ';']).map(str::trim);
    let refuses = |s: &str| s.starts_with("It refuses") || s.starts_with("Refuses");
    if text.trim().is_empty() {
        return Some(format!("{file}: begins without `//!` documentation"));
    }
    (!sentences.into_iter().any(refuses))
        .then(|| format!("{file}: no sentence \"It refuses …\" in its documentation"))
}

pub(super) fn length(file: &str, content: &str) -> Option<Finding> {
    let lines = content.lines().count();
    if lines > LINES_NOTED && lines <= LINES_MAX {
        println!("tidy: note: {file} has {lines} lines: think of a split");
    }
    (lines > LINES_MAX).then(|| format!("{file}: {lines} lines, {LINES_MAX} at most: split it"))
}

/// Work that was not finished.
pub(super) fn leftovers(file: &str, content: &str) -> Vec<Finding> {
    let found = |(number, line): (usize, &str)| {
        let code = code_of(line);
        // Put together here, so that this file does not find itself.
        let words = [concat!("todo", "!("), concat!("unimplemented", "!("), concat!("dbg", "!(")];
        let word = words.into_iter().find(|word| code.contains(word))?;
        Some(format!("{file}:{}: {word}…)", number + 1))
    };
    content.lines().enumerate().filter_map(found).collect()
}

pub(super) fn unsafe_code(file: &str, content: &str) -> Vec<Finding> {
    if file.starts_with(UNSAFE_ROOM) {
        return Vec::new();
    }
    let opens = |code: &str| {
        ["{", "fn", "impl", "trait", "extern"].iter().any(|next| {
            let word = format!("unsafe {next}");
            code.match_indices(&word).any(|(at, _)| !code[..at].ends_with(['"', '`', '_']))
        })
    };
    let allows = |code: &str| {
        ["allow", "expect"].iter().any(|word| code.contains(&format!("{word}(unsafe_code")))
    };
    let found = |(number, line): (usize, &str)| {
        let code = code_of(line);
        (opens(code) || allows(code))
            .then(|| format!("{file}:{}: unsafe lives in {UNSAFE_ROOM} only", number + 1))
    };
    content.lines().enumerate().filter_map(found).collect()
}

/// The line without a comment.
fn code_of(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crate_says_what_it_refuses() {
        assert_eq!(refusal("f", "//! Bytes.\n//!\n//! It refuses I/O.\nfn x() {}"), None);
        assert_eq!(refusal("f", "//! Bytes; refuses nothing.\n//! Refuses sockets."), None);
        assert!(refusal("f", "//! Bytes.\nfn x() {} // It refuses").is_some());
        assert!(refusal("f", "//! \nfn x() {}").is_some());
    }

    #[test]
    fn long_files_are_found() {
        assert_eq!(length("f", &"x\n".repeat(LINES_MAX)), None);
        assert!(length("f", &"x\n".repeat(LINES_MAX + 1)).is_some());
    }

    #[test]
    fn unfinished_work_is_found() {
        let text = format!("fn x() {{ {}) }}", concat!("todo", "!("));
        assert_eq!(leftovers("f", &text).len(), 1);
        assert!(leftovers("f", "// a todo list\n").is_empty());
    }

    #[test]
    fn unsafe_outside_its_room_is_found() {
        let text = concat!("fn x() { uns", "afe { y() } }");
        assert_eq!(unsafe_code("crates/upcall/src/lib.rs", text).len(), 1);
        assert!(unsafe_code("crates/netlink-io/src/sys.rs", text).is_empty());
        assert!(unsafe_code("crates/upcall/src/lib.rs", "// no unsafe { here }").is_empty());
        let text = concat!("#![allow(uns", "afe_code, reason = \"x\")]");
        assert_eq!(unsafe_code("crates/upcall/src/lib.rs", text).len(), 1);
    }
}
