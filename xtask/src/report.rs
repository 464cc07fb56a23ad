//! The end of a test run: the table, what was skipped and why, what failed, the last line; and the
//! same as `JUnit` XML for machines.

use crate::libtest::{Case, Counts, Outcome, count};
use std::fmt::Write as _;
use std::time::Duration;

/// All tests of one place: this machine, a kernel, the fuzz targets.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) name: String,
    pub(crate) cases: Vec<Case>,
    pub(crate) took: Duration,
}

pub(crate) fn total(stages: &[Stage]) -> Counts {
    let mut total = Counts::default();
    for stage in stages {
        total += count(&stage.cases);
    }
    total
}

/// Skips that `--require` does not allow.
pub(crate) fn unexpected_skips(stages: &[Stage]) -> usize {
    let cases = stages.iter().flat_map(|stage| &stage.cases);
    cases.filter(|c| matches!(c.outcome, Outcome::Skipped { by_design: false, .. })).count()
}

/// Everything but the last line.
pub(crate) fn table(stages: &[Stage]) -> String {
    let width = stages.iter().map(|stage| stage.name.len()).max().unwrap_or(0);
    // What failed comes last: of a long log the end is what people see.
    let (mut text, mut failed) = (String::new(), String::new());
    for stage in stages {
        for case in &stage.cases {
            let (list, word, reason) = match &case.outcome {
                Outcome::Passed => continue,
                Outcome::Failed(why) => (&mut failed, "FAILED", why),
                Outcome::Skipped { reason, .. } => (&mut text, "skipped", reason),
            };
            let _ = writeln!(list, "{word} [{}] {}: {reason}", stage.name, case.name);
        }
    }
    text.push_str(&failed);
    for stage in stages {
        let took = stage.took.as_secs_f64();
        let counts = count(&stage.cases).to_string();
        let _ = writeln!(text, "{:width$}  {counts}  ({took:.1} s)", stage.name);
    }
    text
}

pub(crate) fn junit(stages: &[Stage]) -> String {
    let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n");
    for stage in stages {
        let counts = count(&stage.cases);
        let _ = writeln!(
            xml,
            "  <testsuite name=\"{}\" tests=\"{}\" failures=\"{}\" skipped=\"{}\" time=\"{:.3}\">",
            escape(&stage.name),
            stage.cases.len(),
            counts.failed,
            counts.skipped,
            stage.took.as_secs_f64()
        );
        for case in &stage.cases {
            junit_case(&mut xml, &stage.name, case);
        }
        xml.push_str("  </testsuite>\n");
    }
    xml.push_str("</testsuites>\n");
    xml
}

fn junit_case(xml: &mut String, stage: &str, case: &Case) {
    let open =
        format!("    <testcase classname=\"{}\" name=\"{}\"", escape(stage), escape(&case.name));
    let (element, message) = match &case.outcome {
        Outcome::Passed => {
            let _ = writeln!(xml, "{open}/>");
            return;
        }
        Outcome::Failed(why) => ("failure", why),
        Outcome::Skipped { reason, .. } => ("skipped", reason),
    };
    let _ = writeln!(xml, "{open}><{element} message=\"{}\"/></testcase>", escape(message));
}

/// What XML cannot hold at all is dropped.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' => out.push_str("&#10;"),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stages() -> Vec<Stage> {
        let case = |name: &str, outcome| Case { name: name.into(), outcome };
        let skip = |by_design| Outcome::Skipped { reason: "no <x>".into(), by_design };
        let cases = vec![
            case("a", Outcome::Passed),
            case("b", Outcome::Failed("said \"no\"".into())),
            case("c", skip(false)),
            case("d", skip(true)),
        ];
        let took = Duration::from_millis(1500);
        vec![
            Stage { name: "6.12".into(), cases, took },
            Stage { name: "host".into(), cases: vec![case("e", Outcome::Passed)], took },
        ]
    }

    #[test]
    fn the_last_line_adds_up() {
        assert_eq!(total(&stages()).to_string(), "2 passed, 1 failed, 2 skipped");
        assert_eq!(unexpected_skips(&stages()), 1);
    }

    #[test]
    fn the_table_names_what_did_not_pass() {
        let text = table(&stages());
        assert!(text.contains("FAILED [6.12] b: said \"no\"\n"), "{text}");
        assert!(text.contains("skipped [6.12] c: no <x>\n"), "{text}");
        assert!(text.contains("host  1 passed, 0 failed, 0 skipped  (1.5 s)\n"), "{text}");
        assert!(!text.contains("] a:"), "{text}");
    }

    #[test]
    fn junit_is_well_formed() {
        let xml = junit(&stages());
        assert!(xml.contains("<failure message=\"said &quot;no&quot;\"/>"), "{xml}");
        assert!(xml.contains("<skipped message=\"no &lt;x&gt;\"/>"), "{xml}");
        assert_eq!(xml.matches("<testsuite ").count(), xml.matches("</testsuite>").count());
        assert_eq!(escape("a\u{1b}[31m"), "a[31m");
    }
}
