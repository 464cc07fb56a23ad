//! `upcalld top`: a live view of a running daemon, through its control socket.

mod picture;
mod rates;
mod screen;
pub(crate) mod snapshot;

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use clap::Args;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};
use ratatui::text::Text;

use crate::control::client::{Client, Target};
use crate::exit::Exit;
use rates::Rates;
use snapshot::{Hot, Snapshot};

/// Appended to `upcalld top --help`.
pub(crate) const HELP: &str = "\
Rates are of the last interval, latencies since the start. What was lost, shed or refused is red. Workers,
ports and flows are those with most to do, as many as there is room for. q ends it.

Examples:
  upcalld top
      the view, until q
  upcalld top --once
      a page of text, for a ticket or 'watch'
  upcalld top --json --once | jq .per_second.received
      one number, for a script

Exit status: 0 at the end; 1 when no daemon answers, or there is no terminal.";

/// Rows of a page of text.
const PAGE_ROWS: usize = 60;
/// The flow table, which may be large, is looked at once in so many intervals.
const FLOWS_EVERY: u64 = 3;

/// Options of `top`.
#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    #[command(flatten)]
    target: Target,
    /// How often to look
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = interval)]
    interval: Duration,
    /// Look twice, an interval apart, print a page of text without colours, and end
    #[arg(long)]
    once: bool,
    /// Print the first screen as a picture (SVG), and end: `cargo xtask pictures` does, for the documentation
    #[arg(long, hide = true, conflicts_with_all = ["once", "json"])]
    picture: bool,
    /// Print a JSON object a line instead: rates, counts, workers, ports, flows
    #[arg(long)]
    json: bool,
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval = humantime::parse_duration(text).map_err(|err| err.to_string())?;
    let bounds = Duration::from_millis(100)..=Duration::from_hours(1);
    if bounds.contains(&interval) { Ok(interval) } else { Err("from 100ms to 1h".to_owned()) }
}

/// Shows it.
pub(crate) fn run(args: &TopArgs) -> Result<(), Exit> {
    let mut client = args.target.connect()?;
    client.ask("set-options", &["--format".into(), "json".into()])?;
    let mut view = View { before: ask(&mut client, true)?, now: None, hot: None, looks: 0 };
    if args.once || args.json || args.picture {
        return print(args, &mut client, &mut view);
    }
    if !std::io::stdout().is_terminal() {
        let why = "there is no terminal here: --once prints a page, --json what a program reads";
        return Err(Exit::Other(why.to_owned()));
    }
    let terminal = ratatui::try_init().map_err(|err| Exit::Other(format!("the terminal: {err}")));
    let ended = live(terminal?, args.interval, &mut client, &mut view);
    ratatui::restore();
    ended
}

/// The last two looks.
struct View {
    before: Snapshot,
    now: Option<Snapshot>,
    hot: Option<Hot>,
    looks: u64,
}

impl View {
    fn look(&mut self, client: &mut Client, flows: bool) -> Result<(), Exit> {
        self.looks += 1;
        let mut next = ask(client, flows)?;
        if let Some(hot) = next.hot.take() {
            self.hot = Some(hot);
        }
        if let Some(now) = self.now.replace(next) {
            self.before = now;
        }
        Ok(())
    }

    fn rates(&self) -> Rates<'_> {
        Rates::new(&self.before, self.now.as_ref().unwrap_or(&self.before), self.hot.as_ref())
    }
}

fn ask(client: &mut Client, flows: bool) -> Result<Snapshot, Exit> {
    client.renew();
    let words = if flows { vec!["flows".to_owned()] } else { Vec::new() };
    let answer = client.ask("stats/show", &words)?;
    serde_json::from_value(answer)
        .map_err(|err| Exit::Other(format!("an answer that is none of stats/show: {err}")))
}

fn print(args: &TopArgs, client: &mut Client, view: &mut View) -> Result<(), Exit> {
    loop {
        std::thread::sleep(args.interval);
        view.look(client, true)?;
        let rates = view.rates();
        let page = if args.json {
            serde_json::to_string(&rates.told()).map_err(|err| Exit::Other(err.to_string()))? + "\n"
        } else if args.picture {
            picture::svg(&screen::lines(&rates, picture::ROWS))
        } else {
            let line =
                |line: &ratatui::text::Line<'_>| line.to_string().trim_end().to_owned() + "\n";
            screen::lines(&rates, PAGE_ROWS).iter().map(line).collect()
        };
        let nobody_reads = std::io::stdout().write_all(page.as_bytes()).is_err();
        if args.once || args.picture || nobody_reads {
            return Ok(());
        }
    }
}

fn live(
    mut terminal: ratatui::DefaultTerminal,
    interval: Duration,
    client: &mut Client,
    view: &mut View,
) -> Result<(), Exit> {
    let failed = |err: std::io::Error| Exit::Other(format!("the terminal: {err}"));
    loop {
        let next = Instant::now() + interval;
        let draw = |frame: &mut ratatui::Frame<'_>| {
            let lines = screen::lines(&view.rates(), frame.area().height.into());
            frame.render_widget(Text::from(lines), frame.area());
        };
        terminal.draw(draw).map_err(failed)?;
        while let Some(left) = next.checked_duration_since(Instant::now()) {
            if event::poll(left).map_err(failed)? {
                match event::read().map_err(failed)? {
                    Event::Key(key) if is_end(key) => return Ok(()),
                    Event::Resize(..) => break,
                    _ => {}
                }
            }
        }
        view.look(client, view.looks.is_multiple_of(FLOWS_EVERY))?;
    }
}

fn is_end(key: event::KeyEvent) -> bool {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    matches!(key.code, KeyCode::Char('q') | KeyCode::Esc)
        || key.code == KeyCode::Char('c') && control
}
