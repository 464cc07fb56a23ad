//! Answers with evidence.

use std::fmt;

use ovs_datapath::ControlError;
use rustix::io::Errno;

use crate::DispatchMode;

/// Can it be used?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// Yes.
    Available,
    /// No: the kernel refused it the way kernels without it do.
    Unavailable,
    /// The question is open.
    Undetermined(Cause),
}

impl Support {
    /// Will the answer be the same when asked again? Only such answers are worth remembering: who
    /// caches a refusal for want of a privilege as "no" lies until the process ends.
    pub fn is_conclusive(self) -> bool {
        !matches!(self, Self::Undetermined(_))
    }

    /// The answer in one word: `available`, `unavailable` or `undetermined`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Available => "available",
            Self::Unavailable => "unavailable",
            Self::Undetermined(_) => "undetermined",
        }
    }

    /// Why the question is open.
    pub fn cause(self) -> Option<Cause> {
        match self {
            Self::Undetermined(cause) => Some(cause),
            _ => None,
        }
    }
}

impl fmt::Display for Support {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cause() {
            None => f.write_str(self.word()),
            Some(cause) => write!(f, "{} ({cause})", self.word()),
        }
    }
}

/// Why a question is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// The kernel refuses to be asked without this capability.
    Needs(&'static str),
    /// There is nobody to ask: the module is not loaded.
    NoModule,
    /// The kernel agrees to features that do not exist (before 5.4), so its agreement tells nothing.
    AgreesToAnything,
    /// The kernel refused for a reason that has nothing to do with the feature.
    Refused,
    /// The answer did not come, or could not be read.
    NoAnswer,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Needs(capability) => write!(f, "needs {capability}"),
            Self::NoModule => f.write_str("the module is not loaded"),
            Self::AgreesToAnything => f.write_str("this kernel agrees to anything"),
            Self::Refused => f.write_str("refused for another reason"),
            Self::NoAnswer => f.write_str("no answer"),
        }
    }
}

impl Cause {
    /// What an error that is not the refusal expected of kernels without the feature means.
    pub(crate) fn of(err: &ControlError) -> Self {
        match err {
            // GENL_UNS_ADMIN_PERM (net/netlink/genetlink.c) answers EPERM, setuid rules EACCES.
            _ if err.is(Errno::PERM) || err.is(Errno::ACCESS) => Self::Needs("CAP_NET_ADMIN"),
            ControlError::NoFamily { .. } => Self::NoModule,
            ControlError::Refused { .. } => Self::Refused,
            _ => Self::NoAnswer,
        }
    }
}

/// What was asked and answered, as values.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// The request, as the end of "asked the kernel to …".
    pub request: Option<String>,
    /// The errno of its refusal.
    pub errno: Option<i32>,
    /// The kernel's explanation of the refusal (`NLMSGERR_ATTR_MSG`).
    pub ext_ack: Option<String>,
    /// Highest attribute number of the family that was asked (`CTRL_ATTR_MAXATTR`).
    pub attr_max: Option<u32>,
    /// Version of the family that was asked.
    pub version: Option<u32>,
}

impl Facts {
    pub(crate) fn request(request: impl Into<String>) -> Self {
        Self { request: Some(request.into()), ..Self::default() }
    }

    pub(crate) fn of(err: &ControlError) -> Self {
        match err {
            ControlError::Refused { op, errno, ext_ack } => Self {
                request: Some(op.clone()),
                errno: Some(*errno),
                ext_ack: ext_ack.clone(),
                ..Self::default()
            },
            _ => Self::default(),
        }
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
    /// The same as values.
    pub facts: Facts,
}

impl Finding {
    pub(crate) fn new(
        feature: &'static str,
        support: Support,
        evidence: impl Into<String>,
    ) -> Self {
        Self { feature, support, evidence: evidence.into(), facts: Facts::default() }
    }

    /// An error that says nothing about the feature.
    pub(crate) fn open(feature: &'static str, err: &ControlError) -> Self {
        Self::refused(feature, Support::Undetermined(Cause::of(err)), err)
    }

    /// A refusal, whatever it means.
    pub(crate) fn refused(feature: &'static str, support: Support, err: &ControlError) -> Self {
        Self::new(feature, support, err.to_string()).with(Facts::of(err))
    }

    pub(crate) fn with(mut self, facts: Facts) -> Self {
        self.facts = facts;
        self
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

    #[test]
    fn a_missing_privilege_is_never_a_no() {
        let refused = |errno: Errno, ext_ack: Option<&str>| ControlError::Refused {
            op: "try it".into(),
            errno: errno.raw_os_error(),
            ext_ack: ext_ack.map(str::to_owned),
        };
        let finding = Finding::open("x", &refused(Errno::PERM, None));
        assert_eq!(finding.support.to_string(), "undetermined (needs CAP_NET_ADMIN)");
        assert!(!finding.support.is_conclusive());
        let finding = Finding::open("x", &refused(Errno::NOMEM, Some("no room")));
        assert_eq!(finding.support.cause(), Some(Cause::Refused));
        let facts = finding.facts;
        assert_eq!((facts.request.as_deref(), facts.errno), (Some("try it"), Some(12)));
        assert_eq!(facts.ext_ack.as_deref(), Some("no room"));
    }
}
