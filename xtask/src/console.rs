//! What a kernel's console says about its health.

/// Lines before and after the first bad one that a person needs.
const LINES_BEFORE: usize = 5;
const LINES_AFTER: usize = 60;
const TAIL_LINES: usize = 40;

/// Each ends the run: the kernel is broken from there on.
const FATAL: &[&str] = &["Kernel panic", "Oops:", "BUG:", "general protection fault", "UBSAN:"];
/// A known crash of the emulator with one thread for each CPU, in text that is patched while it runs
/// (QEMU up to 8.0; nothing to do with what is tested).
const EMULATOR: &str = "Oops: int3";

/// The part around the first fatal line, if there is one.
pub(crate) fn fatal(log: &str) -> Option<String> {
    let lines: Vec<&str> = log.lines().collect();
    let at = lines.iter().position(|line| FATAL.iter().any(|word| line.contains(word)))?;
    let range = at.saturating_sub(LINES_BEFORE)..(at + LINES_AFTER).min(lines.len());
    Some(lines[range].join("\n"))
}

/// Kernel warnings: shown, not fatal.
pub(crate) fn warnings(log: &str) -> Vec<&str> {
    log.lines().filter(|line| line.contains("WARNING:")).collect()
}

pub(crate) fn is_emulator_crash(log: &str) -> bool {
    log.contains(EMULATOR)
}

pub(crate) fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_shown_with_what_led_to_it() {
        let mut log: Vec<String> = (0..200).map(|n| format!("line {n}")).collect();
        assert_eq!(fatal(&log.join("\n")), None);
        log[100] = "[ 1.0] BUG: kernel NULL pointer dereference".into();
        log[150] = "[ 1.1] Kernel panic - not syncing".into();
        let part = fatal(&log.join("\r\n")).unwrap();
        assert!(part.starts_with("line 95") && part.contains("NULL") && part.contains("panic"));
    }

    #[test]
    fn only_int3_is_the_emulators_fault() {
        assert!(is_emulator_crash("[ 2.0] Oops: int3: 0000 [#1]"));
        assert!(!is_emulator_crash("[ 2.0] Oops: 0002 [#1]\nKernel panic"));
    }

    #[test]
    fn warnings_are_listed() {
        assert_eq!(warnings("a\n[1] WARNING: CPU: 0\nb"), ["[1] WARNING: CPU: 0"]);
    }

    #[test]
    fn a_short_log_is_its_own_tail() {
        assert_eq!(tail("a\nb"), "a\nb");
    }
}
