//! What a libtest binary prints, read back: results, failures, skips.
//!
//! A test says that it could not run with a line `SKIP name: reason`, and that this kernel lacks the
//! thing by design with `SKIP-OK name: reason`; libtest counts both as passed, we do not.

use std::collections::{BTreeMap, VecDeque};

/// Lines of a failed test that are repeated at the end of a run.
const WORDS_MAX: usize = 30;

/// What became of a test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Passed,
    Failed(String),
    Skipped {
        reason: String,
        /// Nothing is wrong with the machine: fine under `--require`.
        by_design: bool,
    },
}

/// A finished test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) outcome: Outcome,
}

/// Counts of a set of tests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

pub(crate) fn count(cases: &[Case]) -> Counts {
    let mut counts = Counts::default();
    for case in cases {
        match case.outcome {
            Outcome::Passed => counts.passed += 1,
            Outcome::Failed(_) => counts.failed += 1,
            Outcome::Skipped { .. } => counts.skipped += 1,
        }
    }
    counts
}

/// The line that says why a test failed, of all that it said: the error it gave, or what it panicked with.
fn cause<'a>(mut words: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    while let Some(line) = words.next() {
        if line.starts_with("Error: ") {
            return Some(line);
        }
        // As libtest prints it: where, and on the next line what.
        if line.contains("panicked at ") && line.ends_with(':') {
            return words.next();
        }
    }
    None
}

/// Reads the output of one or more binaries, line by line.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    cases: Vec<Case>,
    /// Tests of the binary that is running, until its summary.
    running: BTreeMap<String, Outcome>,
    skips: BTreeMap<String, (String, bool)>,
    current: Option<String>,
    in_failures: bool,
    in_successes: bool,
    /// Whose words the next lines are, and the last of them: what a failure is explained with.
    speaker: Option<String>,
    words: VecDeque<String>,
    expected: Option<usize>,
    /// A benchmark that is run once, as criterion names it.
    benchmark: Option<String>,
    /// Where the tests come from, put before their names.
    prefix: String,
}

impl Parser {
    pub(crate) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), ..Self::default() }
    }

    /// One line of stdout. `false` if it repeats what a test said that passed: only its skips matter.
    pub(crate) fn line(&mut self, line: &str) -> bool {
        let line = line.trim_end();
        let repeats = self.in_successes;
        if let Some(rest) = line.strip_prefix("running ")
            && let Some(number) = rest.strip_suffix(" tests").or(rest.strip_suffix(" test"))
        {
            self.end_of_benchmark(false);
            self.expected = number.parse().ok();
        } else if let Some(name) = line.strip_prefix("Testing ") {
            self.end_of_benchmark(false);
            self.benchmark = Some(name.to_owned());
        } else if line == "Success" && self.benchmark.is_some() {
            self.end_of_benchmark(true);
        } else if let Some(rest) = line.strip_prefix("test result: ") {
            self.summary(rest);
        } else if let Some((name, rest)) =
            line.strip_prefix("test ").and_then(|rest| rest.split_once(" ..."))
        {
            let name = name.trim_end_matches(" - should panic").to_owned();
            self.running.insert(name.clone(), Outcome::Passed);
            // What is said on stderr comes before the line that it was said in, where that comes whole.
            let early =
                if self.is_explained() { std::mem::take(&mut self.words) } else { VecDeque::new() };
            self.current = Some(name.clone());
            self.speaks(Some(name));
            self.words = early;
            self.word(rest.trim_start());
        } else if let Some(name) =
            line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----"))
        {
            self.speaks(Some(name.to_owned()));
        } else {
            self.word(line);
        }
        !(repeats && self.in_successes)
    }

    /// One line of stderr: a skip, or words of the test that runs.
    pub(crate) fn error_line(&mut self, line: &str) {
        if !self.skip(line.trim()) {
            self.keep(line);
        }
    }

    fn keep(&mut self, words: &str) {
        if self.words.len() == WORDS_MAX {
            self.words.pop_front();
        }
        self.words.push_back(words.trim_end().to_owned());
    }

    /// Does the one that spoke last need no more words: it has ended, and has not failed?
    fn is_explained(&self) -> bool {
        let outcome = self.speaker.as_ref().and_then(|last| self.running.get(last));
        self.current.is_none() && !matches!(outcome, Some(Outcome::Failed(_)))
    }

    /// From here on it is another test that speaks: what the last one said explains its failure.
    fn speaks(&mut self, next: Option<String>) {
        let words = std::mem::take(&mut self.words);
        let last = std::mem::replace(&mut self.speaker, next);
        if let Some(Outcome::Failed(why)) = last.and_then(|last| self.running.get_mut(&last)) {
            if let Some(cause) = cause(words.iter().map(String::as_str)) {
                cause.clone_into(why);
            }
            for line in words.iter().filter(|line| !line.is_empty()) {
                why.push_str("\n    ");
                why.push_str(line);
            }
        }
    }

    /// The end of a line that began with a test's name, or a line by itself.
    fn word(&mut self, text: &str) {
        if self.skip(text.trim()) {
            return;
        }
        match text {
            "failures:" | "successes:" => {
                self.speaks(None);
                self.in_failures = text == "failures:";
                self.in_successes = !self.in_failures;
            }
            "ok" => {
                self.current = None;
                self.words.clear();
            }
            "FAILED" => {
                if let Some(name) = self.current.take() {
                    self.fail(&name, "failed");
                }
            }
            _ if text == "ignored" || text.starts_with("ignored, ") => {
                let reason = text.strip_prefix("ignored, ").unwrap_or("ignored").to_owned();
                if let Some(name) = self.current.take() {
                    self.running.insert(name, Outcome::Skipped { reason, by_design: true });
                }
            }
            _ if self.in_failures && self.speaker.is_none() => {
                if let Some(name) = text.strip_prefix("    ") {
                    self.fail(name, "failed");
                }
            }
            _ => self.keep(text),
        }
    }

    /// Only a test that is known can be named in the list of failures: its details look alike.
    fn fail(&mut self, name: &str, why: &str) {
        if let Some(outcome) = self.running.get_mut(name)
            && !matches!(outcome, Outcome::Failed(_))
        {
            *outcome = Outcome::Failed(why.to_owned());
        }
    }

    fn skip(&mut self, text: &str) -> bool {
        let (rest, by_design) = match (text.strip_prefix("SKIP-OK "), text.strip_prefix("SKIP ")) {
            (Some(rest), _) => (rest, true),
            (None, Some(rest)) => (rest, false),
            (None, None) => return false,
        };
        let Some((name, reason)) = rest.split_once(": ") else { return false };
        self.skips.insert(name.to_owned(), (reason.to_owned(), by_design));
        true
    }

    /// `ok. 3 passed; 1 failed; …`: the names must add up to what libtest counted.
    fn summary(&mut self, text: &str) {
        let number = |word: &str| {
            let mut parts = text.split([';', '.']).map(str::trim);
            parts.find_map(|part| part.strip_suffix(word)?.trim().parse::<usize>().ok())
        };
        let failed = number("failed").unwrap_or(0);
        let known = self.running.values().filter(|o| matches!(o, Outcome::Failed(_))).count();
        self.settle();
        for n in known..failed {
            self.push(&format!("unnamed failure {}", n - known + 1), "failed without a name");
        }
    }

    fn settle(&mut self) {
        self.speaks(None);
        for (name, outcome) in std::mem::take(&mut self.running) {
            // A test may be named in full or by its last part.
            let short = name.rsplit("::").next().unwrap_or(&name);
            let skip = self.skips.remove(&name).or_else(|| self.skips.remove(short));
            let outcome = match (outcome, skip) {
                (Outcome::Passed, Some((reason, by_design))) => {
                    Outcome::Skipped { reason, by_design }
                }
                (outcome, _) => outcome,
            };
            self.cases.push(Case { name: format!("{}{name}", self.prefix), outcome });
        }
        // A skip under a name that no test has must not be lost: it would look like a pass.
        for (name, (reason, by_design)) in std::mem::take(&mut self.skips) {
            let outcome = Outcome::Skipped { reason, by_design };
            self.cases.push(Case { name: format!("{}{name}", self.prefix), outcome });
        }
        (self.current, self.expected) = (None, None);
        (self.in_failures, self.in_successes) = (false, false);
    }

    /// A benchmark has no summary: it ends with a word, or with what comes next.
    fn end_of_benchmark(&mut self, passed: bool) {
        let Some(name) = self.benchmark.take() else { return };
        if passed {
            let name = format!("{}{name}", self.prefix);
            self.cases.push(Case { name, outcome: Outcome::Passed });
        } else {
            self.push(&name, "the benchmark did not end well");
        }
    }

    fn push(&mut self, name: &str, why: &str) {
        let name = format!("{}{name}", self.prefix);
        self.cases.push(Case { name, outcome: Outcome::Failed(why.to_owned()) });
    }

    /// Ends with the exit status: a binary that died, or failed without saying which test, is a
    /// failure of its own.
    pub(crate) fn finish(mut self, status: i32) -> Vec<Case> {
        self.end_of_benchmark(false);
        if self.expected.is_none() {
            self.settle();
        }
        if let Some(expected) = self.expected {
            let at = self.current.clone();
            let why = format!("ended with status {status} before its summary of {expected} tests");
            if let Some(name) = &at {
                self.fail(name, &why);
            }
            self.settle();
            if at.is_none() {
                self.push("(binary)", &why);
            }
        } else if status != 0 && count(&self.cases).failed == 0 {
            self.push("(binary)", &format!("exit status {status}"));
        }
        self.cases
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, status: i32) -> Vec<Case> {
        let mut parser = Parser::new("");
        for line in text.lines() {
            parser.line(line);
        }
        parser.finish(status)
    }

    fn named<'a>(cases: &'a [Case], name: &str) -> &'a Outcome {
        &cases.iter().find(|case| case.name == name).unwrap().outcome
    }

    const NOCAPTURE: &str = "
running 5 tests
test a::passes ... some words
ok
test a::fails ... thread 'a::fails' panicked at x.rs:1:1:
FAILED
test a::skips ... SKIP skips: no module
ok
test old ... SKIP-OK old: 5.10 has no per-CPU dispatch
ok
test later ... ignored, slow

failures:

failures:
    a::fails

test result: FAILED. 3 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s
";

    #[test]
    fn each_outcome_is_told_apart() {
        let cases = parse(NOCAPTURE, 101);
        assert_eq!(count(&cases), Counts { passed: 1, failed: 1, skipped: 3 });
        let why = "failed\n    thread 'a::fails' panicked at x.rs:1:1:".to_owned();
        assert_eq!(*named(&cases, "a::fails"), Outcome::Failed(why));
        let skip = |reason: &str, by_design| Outcome::Skipped { reason: reason.into(), by_design };
        assert_eq!(*named(&cases, "a::skips"), skip("no module", false));
        assert_eq!(*named(&cases, "old"), skip("5.10 has no per-CPU dispatch", true));
        assert_eq!(*named(&cases, "later"), skip("slow", true));
    }

    #[test]
    fn captured_output_counts_the_same() {
        let text = "
running 2 tests
test fails ... FAILED
test skips ... ok

successes:

---- skips stdout ----
SKIP skips: not root

successes:
    skips

failures:

---- fails stdout ----
    indented words

failures:
    fails

test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s

running 0 tests

test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.0s
";
        let cases = parse(text, 101);
        assert_eq!(count(&cases), Counts { passed: 0, failed: 1, skipped: 1 });
        let why = "failed\n        indented words".to_owned();
        assert_eq!(*named(&cases, "fails"), Outcome::Failed(why));
        let mut parser = Parser::new("");
        let shown: String = text.lines().filter(|line| parser.line(line)).collect();
        assert!(shown.contains("indented words") && !shown.contains("not root"), "{shown}");
    }

    #[test]
    fn the_first_line_of_a_failure_is_its_cause() {
        let text = "running 2 tests\ntest a ... said before\nError: no socket\n\nCaused by:\n    none\nFAILED\n\
                    test b ... thread 'b' panicked at b.rs:1:1:\n1 is not 2\nnote: run with\nFAILED\n\
                    test result: FAILED. 0 passed; 2 failed";
        let cases = parse(text, 101);
        let first = |name| match named(&cases, name) {
            Outcome::Failed(why) => why.lines().next().unwrap_or_default(),
            other => panic!("{name}: {other:?}"),
        };
        assert_eq!((first("a"), first("b")), ("Error: no socket", "1 is not 2"));
    }

    #[test]
    fn what_comes_on_stderr_is_its_tests_whether_early_or_late() {
        let mut parser = Parser::new("");
        parser.line("running 3 tests");
        parser.line("test a ... ok");
        parser.error_line("Error: early");
        parser.line("test b ... FAILED");
        parser.line("test c ... FAILED");
        parser.error_line("Error: late");
        parser.line("test result: FAILED. 1 passed; 2 failed");
        let cases = parser.finish(101);
        let failed = |name, cause: &str| {
            let why = format!("{cause}\n    {cause}");
            assert_eq!(*named(&cases, name), Outcome::Failed(why));
        };
        failed("b", "Error: early");
        failed("c", "Error: late");
    }

    #[test]
    fn a_skip_under_a_wrong_name_is_still_one() {
        let text =
            "running 1 test\ntest a ... SKIP b: gone\nok\ntest result: ok. 1 passed; 0 failed";
        assert_eq!(count(&parse(text, 0)).skipped, 1);
    }

    #[test]
    fn a_binary_that_dies_fails_the_test_it_was_in() {
        let cases = parse("running 2 tests\ntest a ... ok\ntest b ... words", 134);
        assert_eq!(count(&cases), Counts { passed: 1, failed: 1, skipped: 0 });
        let Outcome::Failed(why) = named(&cases, "b") else { panic!("b did not fail") };
        assert!(why.contains("134"));
        assert_eq!(count(&parse("running 1 test\ntest a ... ok\n", 1)).failed, 1);
    }

    #[test]
    fn a_status_without_a_reason_is_a_failure() {
        assert_eq!(count(&parse("", 1)).failed, 1);
        assert_eq!(count(&parse("", 0)), Counts::default());
    }

    #[test]
    fn a_failure_that_was_not_named_is_counted() {
        let text = "running 1 test\ntest result: FAILED. 0 passed; 1 failed; 0 ignored\n";
        assert_eq!(count(&parse(text, 101)).failed, 1);
    }

    #[test]
    fn a_benchmark_that_is_run_once_is_a_test() {
        let text = "SKIP engine: no privilege\nTesting wire/a b\nSuccess\n\nTesting wire/c\n";
        let cases = parse(text, 101);
        assert_eq!(*named(&cases, "wire/a b"), Outcome::Passed);
        assert!(matches!(named(&cases, "wire/c"), Outcome::Failed(_)));
        assert!(matches!(named(&cases, "engine"), Outcome::Skipped { by_design: false, .. }));
        let cases = parse("Testing a\nrunning 0 tests\ntest result: ok. 0 passed; 0 failed", 0);
        assert_eq!(count(&cases), Counts { passed: 0, failed: 1, skipped: 0 });
    }

    #[test]
    fn a_skip_on_stderr_counts() {
        let mut parser = Parser::new("x: ");
        parser.line("running 1 test");
        parser.line("test m::a ... ");
        parser.error_line("SKIP m::a: no iperf3");
        parser.line("ok");
        parser.line("test result: ok. 1 passed; 0 failed; 0 ignored");
        let cases = parser.finish(0);
        assert_eq!(cases[0].name, "x: m::a");
        assert_eq!(count(&cases).skipped, 1);
    }
}
