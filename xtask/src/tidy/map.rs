//! ARCHITECTURE.md against what is there: it must name every package, and what it says keeps an
//! invariant must exist.

use super::Finding;

/// Members that the map does not mention.
pub(super) fn unmentioned(architecture: &str, members: &[&str]) -> Vec<Finding> {
    if architecture.is_empty() {
        return vec!["ARCHITECTURE.md is missing or empty".to_owned()];
    }
    let absent = members.iter().filter(|name| !names(architecture, name));
    absent.map(|name| format!("ARCHITECTURE.md does not mention {name}")).collect()
}

/// As a whole word: `upcall` is not mentioned by `upcalld`.
fn names(text: &str, name: &str) -> bool {
    let part_of_word = |c: char| c.is_alphanumeric() || c == '-' || c == '_';
    text.match_indices(name).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + name.len()..].chars().next();
        !before.is_some_and(part_of_word) && !after.is_some_and(part_of_word)
    })
}

/// Invariants are lines (with what is indented below) that begin with `I` and a number and a dot;
/// each says `(kept by: …)`, and what stands there in backquotes as `path` or `path::test` exists.
pub(super) fn broken_invariants(
    architecture: &str,
    read: &dyn Fn(&str) -> Option<String>,
) -> Vec<Finding> {
    let mut found = Vec::new();
    for (label, text) in invariants(architecture) {
        let Some((_, keepers)) = text.split_once("kept by:") else {
            found.push(format!(
                "ARCHITECTURE.md {label}: says nothing of what keeps it (kept by: …)"
            ));
            continue;
        };
        let references: Vec<&str> = keepers
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|word| word.contains(".rs") || word.contains(".toml"))
            .collect();
        if references.is_empty() && !keepers.contains('`') {
            found.push(format!("ARCHITECTURE.md {label}: `kept by:` names no file, test or lint"));
        }
        for reference in references {
            if let Err(why) = exists(reference, read) {
                found.push(format!("ARCHITECTURE.md {label}: `{reference}`: {why}"));
            }
        }
    }
    found
}

/// Label and whole text of each invariant.
fn invariants(architecture: &str) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    let mut inside = false;
    for line in architecture.lines() {
        if let Some(label) = label(line) {
            found.push((label, line.to_owned()));
            inside = true;
        } else if line.trim().is_empty() || line.starts_with('#') {
            inside = false;
        } else if let (true, Some((_, text))) = (inside, found.last_mut()) {
            text.push(' ');
            text.push_str(line.trim());
        }
    }
    found
}

/// `I3` of `I3. …`, `- I3. …`, `* **I3.** …`.
fn label(line: &str) -> Option<String> {
    let text = line.trim_start_matches(['-', '*', ' ']);
    let digits: String = text.strip_prefix('I')?.chars().take_while(char::is_ascii_digit).collect();
    let rest = &text[1 + digits.len()..];
    (!digits.is_empty() && rest.starts_with('.')).then(|| format!("I{digits}"))
}

fn exists(reference: &str, read: &dyn Fn(&str) -> Option<String>) -> Result<(), String> {
    let (path, test) = match reference.split_once("::") {
        Some((path, test)) => (path, test.rsplit("::").next()),
        None => (reference, None),
    };
    let content = read(path).ok_or("no such file")?;
    match test {
        Some(test) if !content.contains(&format!("fn {test}(")) => {
            Err(format!("the file has no `fn {test}`"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &str) -> Option<String> {
        (path == "crates/x/src/y.rs").then(|| "#[test]\nfn keeps() {}\n".to_owned())
    }

    fn broken(text: &str) -> usize {
        broken_invariants(text, &read).len()
    }

    #[test]
    fn every_member_is_mentioned_as_a_word() {
        assert!(unmentioned("`upcall` and `upcalld`", &["upcall", "upcalld"]).is_empty());
        assert_eq!(unmentioned("only `upcalld`, upcall-core", &["upcall"]).len(), 1);
        assert_eq!(unmentioned("", &[]).len(), 1);
    }

    #[test]
    fn what_keeps_an_invariant_exists() {
        assert_eq!(broken("I1. a (kept by: `crates/x/src/y.rs::keeps`)\n"), 0);
        assert_eq!(broken("- **I2.** a\n  (kept by: `crates/x/src/y.rs::tests::keeps`)\n"), 0);
        assert_eq!(broken("I3. a (kept by: lint `unsafe_code`)\n"), 0);
    }

    #[test]
    fn what_does_not_exist_is_found() {
        assert_eq!(broken("I1. a (kept by: `crates/x/src/y.rs::keep`)\n"), 1);
        assert_eq!(broken("I1. a (kept by: `crates/x/src/z.rs`)\n"), 1);
        assert_eq!(broken("I1. a\n\n(kept by: `crates/x/src/y.rs`)\n"), 1);
        assert_eq!(broken("I1. a (kept by: good will)\n"), 1);
    }

    #[test]
    fn other_lines_are_no_invariants() {
        assert_eq!(broken("If it rains\nI am\n1. one\n"), 0);
    }
}
