//! What a panic leaves behind: where, why, which version, and the counters of the last moments.

use std::backtrace::Backtrace;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::panic::PanicHookInfo;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{Access, access};
use rustix::io::Errno;

use crate::counting::Reading;
use crate::exit::Exit;

/// A handler that panics at each packet must not fill disk and log: reports at least so far apart.
const REPORT_GAP: Duration = Duration::from_mins(1);
/// A report file that is longer begins anew.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What the next report says.
struct Last {
    /// By datapath, as text.
    counters: BTreeMap<String, String>,
    reported: Option<Instant>,
    /// Panics without a report of their own since the last one.
    unreported: u64,
}

static LAST: Mutex<Last> =
    Mutex::new(Last { counters: BTreeMap::new(), reported: None, unreported: 0 });

/// Reports panics on standard error from now on, and to `file` as well.
///
/// # Errors
///
/// [`Exit::Other`] when the file could not be written: that must not be found out by a panic.
pub(crate) fn watch(file: Option<PathBuf>) -> Result<(), Exit> {
    file.as_deref().map_or(Ok(()), check)?;
    std::panic::set_hook(Box::new(move |info| {
        let Some(report) = report(info) else { return };
        // Standard error may be gone; there is nobody else to tell.
        let _nobody = std::io::stderr().write_all(report.as_bytes());
        if let Some(path) = &file
            && let Err(err) = append(path, &report)
        {
            let _nobody = writeln!(std::io::stderr(), "cannot write {}: {err}", path.display());
        }
    }));
    Ok(())
}

/// Could the file be written, or made? It is not, as long as there is nothing to report.
fn check(path: &Path) -> Result<(), Exit> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    let able = match access(path, Access::WRITE_OK) {
        Err(Errno::NOENT) => access(directory, Access::WRITE_OK | Access::EXEC_OK),
        other => other,
    };
    able.map_err(|err| {
        Exit::Other(format!(
            "cannot write the crash report {}: {err}; name a file in a directory that the daemon's user may write",
            path.display()
        ))
    })
}

/// The counters of a datapath as of now, for a report.
pub(crate) fn note(datapath: &str, readings: &[Reading]) {
    let mut text = String::new();
    for reading in readings.iter().filter(|reading| reading.value > 0) {
        let _ = write!(text, " {}:{}", reading.name, reading.value);
    }
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    last.counters.insert(datapath.to_owned(), text);
}

/// `None` if the last one was a moment ago.
fn report(info: &PanicHookInfo<'_>) -> Option<String> {
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if last.reported.is_some_and(|at| at.elapsed() < REPORT_GAP) {
        last.unreported += 1;
        return None;
    }
    last.reported = Some(Instant::now());
    let thread = std::thread::current();
    let at = humantime::format_rfc3339_seconds(SystemTime::now());
    let unreported = std::mem::take(&mut last.unreported);
    let counters = last
        .counters
        .iter()
        .map(|(datapath, text)| format!("counters of datapath {datapath} a moment ago:{text}\n"));
    Some(format!(
        "upcalld {} panicked at {at}, thread {}\n{info}\nbefore that without a report: \
         {unreported}\n{}{}\n",
        env!("CARGO_PKG_VERSION"),
        thread.name().unwrap_or("?"),
        counters.collect::<String>(),
        Backtrace::force_capture(),
    ))
}

fn append(path: &Path, report: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    if file.seek(SeekFrom::End(0))? > FILE_BYTES_MAX {
        file.set_len(0)?;
    }
    file.write_all(report.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_reported_once_a_while_with_what_is_known() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("crash");
        let before = std::panic::take_hook();
        watch(Some(path.clone())).unwrap();
        assert!(!path.exists(), "there is nothing to report");
        note(
            "dp0",
            &[
                Reading { name: "received", help: "", value: 7 },
                Reading { name: "shed", help: "", value: 0 },
            ],
        );
        let panic =
            || std::thread::Builder::new().name("worker-x".into()).spawn(|| panic!("on purpose"));
        for _ in 0..3 {
            assert!(panic().unwrap().join().is_err());
        }
        std::panic::set_hook(before);
        let text = std::fs::read_to_string(&path).unwrap();
        // Other tests of this process may panic on purpose, too.
        for part in [
            "on purpose",
            "worker-x",
            "dp0",
            env!("CARGO_PKG_VERSION"),
            " received:7\n",
            "crash.rs:",
        ] {
            assert!(text.contains(part), "no '{part}' in {text}");
        }
        assert!(!text.contains("shed:") && text.matches("panicked at 20").count() == 1, "{text}");
    }

    #[test]
    fn a_file_that_cannot_be_written_is_found_out_at_the_start() {
        let directory = tempfile::tempdir().unwrap();
        assert!(
            check(&directory.path().join("crash")).is_ok() && check(Path::new("crash")).is_ok()
        );
        let err = check(&directory.path().join("none/crash")).unwrap_err().to_string();
        assert!(
            err.contains("none/crash: No such file or directory") && err.contains("name a file"),
            "{err}"
        );
    }

    #[test]
    fn the_file_has_a_bound() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let long = "x".repeat(600 << 10);
        for _ in 0..3 {
            append(file.path(), &long).unwrap();
        }
        assert_eq!(std::fs::metadata(file.path()).unwrap().len(), 600 << 10);
    }
}
