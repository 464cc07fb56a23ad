//! Answers with evidence.

use std::fmt;

use crate::DispatchMode;

/// Can it be used?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// Yes.
    Available,
    /// No: the kernel refused it the way kernels without it do.
    Unavailable,
    /// The kernel refused for another reason, so the question is open.
    Undetermined,
}

impl fmt::Display for Support {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Available => "available",
            Self::Unavailable => "unavailable",
            Self::Undetermined => "undetermined",
        })
    }
}

/// One step of finding out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was in question.
    pub feature: &'static str,
    /// The answer.
    pub support: Support,
    /// What was asked and what the kernel said, as a sentence without its full stop.
    pub evidence: String,
}

impl Finding {
    pub(crate) fn new(
        feature: &'static str,
        support: Support,
        evidence: impl Into<String>,
    ) -> Self {
        Self { feature, support, evidence: evidence.into() }
    }
}

/// The dispatch mode, and every step that led to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The mode.
    pub mode: DispatchMode,
    /// The steps, in order; the last one decided.
    pub findings: Vec<Finding>,
}

impl Decision {
    /// Why this mode, in one line.
    pub fn reason(&self) -> String {
        self.findings.last().map_or_else(String::new, |f| f.evidence.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_step_is_the_reason() {
        let decision = Decision {
            mode: DispatchMode::PerVport,
            findings: vec![
                Finding::new("a", Support::Available, "first"),
                Finding::new("b", Support::Unavailable, "second"),
            ],
        };
        assert_eq!(decision.reason(), "second");
    }
}
