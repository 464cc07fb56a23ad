//! What the pictures of the documentation are made of: the screen of `upcalld top`, and the daemon's metrics as
//! a Prometheus would have scraped them. Both are printed; others draw.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use upcall_testkit::Upcalld;

/// How long `top` looks before it shows its screen.
const TOP_LOOKS: &str = "5s";

const SCRAPE_EVERY: Duration = Duration::from_secs(2);
/// An emulated machine may take its time.
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(30);

/// The line before all scrapes; `# EOF` ends them, as it ends any `OpenMetrics` text.
const SCRAPES: &str = "# scrapes";

/// What looks at the daemon.
pub(crate) struct Picture {
    top: Child,
    scrapes: JoinHandle<Result<String>>,
    over: Arc<AtomicBool>,
}

impl Picture {
    /// Begins to look; `metrics` is the socket that they are served at.
    pub(crate) fn begin(program: &Path, daemon: &Upcalld, metrics: PathBuf) -> Result<Self> {
        let over = Arc::new(AtomicBool::new(false));
        let scrapes = thread::spawn({
            let over = Arc::clone(&over);
            move || scrapes(&metrics, &over)
        });
        let mut top = Command::new(program);
        top.args(["top", "--picture", "--interval", TOP_LOOKS, "--control"]).arg(daemon.control());
        top.stdout(Stdio::piped()).stdin(Stdio::null());
        Ok(Self { top: top.spawn().context("cannot run upcalld top")?, scrapes, over })
    }

    /// Ends, and prints what was seen.
    pub(crate) fn print(self) -> Result<()> {
        self.over.store(true, Ordering::Relaxed);
        let top = self.top.wait_with_output().context("cannot read what top shows")?;
        println!("{}", String::from_utf8_lossy(&top.stdout));
        let scrapes = self.scrapes.join().unwrap_or_else(|panic| resume_unwind(panic))?;
        println!("{scrapes}");
        Ok(())
    }
}

/// Scrapes until `over`; gives `OpenMetrics` text with the times of the samples.
fn scrapes(socket: &Path, over: &AtomicBool) -> Result<String> {
    let mut text = format!("{SCRAPES}\n");
    let mut next = Instant::now();
    while !over.load(Ordering::Relaxed) {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).context("a clock before 1970")?;
        let scraped = scrape(socket).context("cannot scrape the metrics")?;
        // Types and help are the same in each scrape, and no query asks for them.
        for sample in scraped.lines().filter(|line| !line.starts_with('#')) {
            let _ = writeln!(text, "{sample} {:.3}", at.as_secs_f64());
        }
        next += SCRAPE_EVERY;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(text + "# EOF")
}

fn scrape(socket: &Path) -> Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(SCRAPE_TIMEOUT))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: upcalld\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer without a head")?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "{head}\n{body}");
    Ok(body.to_owned())
}
