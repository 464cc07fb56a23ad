//! What ports are asked for by: the name of an interface, or a pattern of names.

use std::fmt;
use std::str::FromStr;

use ovs_wire::datapath::NAME_LEN_MAX;

use crate::Error;
use crate::setup::check_name;

/// Characters that make a text a pattern.
const WILD: [char; 3] = ['*', '?', '['];

/// Which interfaces are to be ports: the one of a name, or all that a pattern matches, now and later.
///
/// A text with `*` (any characters), `?` (one) or `[...]` (one of these, `[!...]` none of them) in it is a
/// pattern; an interface that has such a character in its name is matched by `[*]` in its place.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PortSpec {
    /// The interface of this name; there must be one when it is asked for.
    Name(String),
    /// Every interface whose name matches, as they come and go.
    Pattern(glob::Pattern),
}

impl PortSpec {
    /// Is an interface of this name asked for?
    pub fn matches(&self, interface: &str) -> bool {
        match self {
            Self::Name(name) => name == interface,
            Self::Pattern(pattern) => pattern.matches(interface),
        }
    }
}

impl FromStr for PortSpec {
    type Err = Error;

    /// # Errors
    ///
    /// [`Error::BadName`] for a name that no interface can have, and for a pattern that is none.
    fn from_str(text: &str) -> Result<Self, Error> {
        if !text.contains(WILD) {
            return check_name("port", text).map(|()| Self::Name(text.to_owned()));
        }
        let bad = |why| Error::BadName { what: "pattern of ports", name: text.to_owned(), why };
        // Each of its characters but wild ones is one of a name. A set in brackets is longer than that.
        let fewest = text.chars().filter(|c| *c != '*').count();
        if !text.contains('[') && fewest > NAME_LEN_MAX {
            return Err(bad(format!("no name is as long: at most {NAME_LEN_MAX} bytes")));
        }
        glob::Pattern::new(text).map(Self::Pattern).map_err(|err| bad(err.msg.to_owned()))
    }
}

impl fmt::Display for PortSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Pattern(pattern) => pattern.as_str().fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> PortSpec {
        text.parse().unwrap()
    }

    #[test]
    fn a_text_with_a_wild_character_is_a_pattern() {
        assert_eq!(spec("veth0"), PortSpec::Name("veth0".to_owned()));
        assert!(spec("veth*").matches("veth") && spec("veth*").matches("veth12"));
        assert!(!spec("veth*").matches("eth0") && !spec("veth0").matches("veth01"));
        assert!(spec("p[0-3]?").matches("p2x") && !spec("p[0-3]?").matches("p4x"));
        assert!(spec("a[*]").matches("a*") && !spec("a[*]").matches("ab"));
        assert_eq!(spec("tap?[!ab]").to_string(), "tap?[!ab]");
    }

    #[test]
    fn what_can_match_nothing_is_refused() {
        for text in ["", "a b", "sixteen-bytes-xx", "sixteen-bytes-x?*", "a***", "a[", "a[b"] {
            let err = text.parse::<PortSpec>().unwrap_err();
            assert!(
                matches!(err, Error::BadName { .. }) && !err.to_string().contains('\n'),
                "{err}"
            );
        }
    }
}
