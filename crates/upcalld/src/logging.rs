//! Logs on standard error, and what is logged: by `--log`, the file or `RUST_LOG`, and by `vlog/set`
//! later.

mod limit;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use tracing::Level;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::cli::LogFormat;
use crate::exit::Exit;
use limit::Limit;

/// Default when nothing is said. netlink-proto dumps whole messages at its lower levels.
const DEFAULT_FILTER: &str = "info,netlink_proto=warn";

/// What logs: modules as operators know them, which are the crates.
pub(crate) const MODULES: [&str; 5] =
    ["netlink_proto", "ovs_datapath", "ovs_features", "upcall", "upcalld"];

/// What is logged now.
pub(crate) struct Levels {
    now: Mutex<Filter>,
    /// Puts a filter in force.
    apply: Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>,
    limit: Limit,
}

/// A filter as text.
#[derive(Clone)]
struct Filter {
    /// As it was configured.
    base: String,
    /// Levels that were set since, by module.
    set: BTreeMap<&'static str, LevelFilter>,
}

/// Can this be understood as what is to be logged?
///
/// # Errors
///
/// In words.
pub(crate) fn check(log: &str) -> Result<EnvFilter, String> {
    EnvFilter::try_new(log).map_err(|err| {
        format!(
            "'{log}' does not say what to log ({err}): write a level, as info, or info,upcall=debug"
        )
    })
}

/// Starts logging what `log` says.
///
/// # Errors
///
/// [`Exit::Usage`] if that cannot be understood.
pub(crate) fn start(log: Option<&str>, format: LogFormat) -> Result<Levels, Exit> {
    let now = Filter::new(log);
    let filter = check(&now.base).map_err(Exit::Usage)?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let (ansi, limit) = (std::io::stderr().is_terminal(), Limit::default());
    // The two forms are two types.
    let apply: Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync> = match format {
        LogFormat::Text => {
            let builder = builder.with_ansi(ansi).with_filter_reloading();
            let handle = builder.reload_handle();
            builder.finish().with(limit.clone()).init();
            Box::new(move |filter| handle.reload(filter).map_err(|err| err.to_string()))
        }
        LogFormat::Json => {
            let builder = builder.json().with_filter_reloading();
            let handle = builder.reload_handle();
            builder.finish().with(limit.clone()).init();
            Box::new(move |filter| handle.reload(filter).map_err(|err| err.to_string()))
        }
    };
    Ok(Levels { now: now.into(), apply, limit })
}

impl Levels {
    /// Levels that are set by nobody and go nowhere.
    #[cfg(test)]
    pub(crate) fn for_tests() -> Self {
        let now = Filter::new(None).into();
        Self { now, apply: Box::new(|_| Ok(())), limit: Limit::default() }
    }

    /// Logs how much was held back of what came too often.
    pub(crate) fn tell_held_back(&self) {
        self.limit.tell();
    }

    /// The level of each module. `None` where the filter is more than levels of modules.
    pub(crate) fn list(&self) -> Vec<(&'static str, Option<LevelFilter>)> {
        let now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let base = Targets::from_str(&now.base).ok();
        let level = |module: &&'static str| {
            now.set.get(module).copied().or_else(|| base.as_ref().map(|base| enabled(base, module)))
        };
        MODULES.iter().map(|module| (*module, level(module))).collect()
    }

    /// Sets the level of these modules.
    ///
    /// # Errors
    ///
    /// In words, when the filter does not take it; then all stays as it was.
    pub(crate) fn set(&self, modules: &[&'static str], level: LevelFilter) -> Result<(), String> {
        self.change(|filter| filter.set.extend(modules.iter().map(|module| (*module, level))))
    }

    /// Logs what `log` says from now on; levels that were set are forgotten.
    ///
    /// # Errors
    ///
    /// As [`Levels::set`].
    pub(crate) fn rebase(&self, log: Option<&str>) -> Result<(), String> {
        self.change(|filter| *filter = Filter::new(log))
    }

    fn change(&self, change: impl FnOnce(&mut Filter)) -> Result<(), String> {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let mut wanted = now.clone();
        change(&mut wanted);
        let mut text = wanted.base.clone();
        for (module, level) in &wanted.set {
            let _ = write!(text, ",{module}={level}");
        }
        (self.apply)(check(&text)?)?;
        *now = wanted;
        Ok(())
    }
}

impl Filter {
    fn new(log: Option<&str>) -> Self {
        Self { base: log.unwrap_or(DEFAULT_FILTER).to_owned(), set: BTreeMap::new() }
    }
}

/// The most that `base` lets through of a module.
fn enabled(base: &Targets, module: &str) -> LevelFilter {
    let levels = [Level::TRACE, Level::DEBUG, Level::INFO, Level::WARN, Level::ERROR];
    let most = levels.into_iter().find(|level| base.would_enable(module, level));
    most.map_or(LevelFilter::OFF, LevelFilter::from_level)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_those_of_the_start_until_they_are_set() {
        let levels = Levels::for_tests();
        let of = |name: &str| levels.list().into_iter().find(|(module, _)| *module == name);
        assert_eq!(of("netlink_proto").unwrap().1, Some(LevelFilter::WARN));
        assert_eq!(of("upcall").unwrap().1, Some(LevelFilter::INFO));
        levels.set(&["upcall"], LevelFilter::DEBUG).unwrap();
        assert_eq!(of("upcall").unwrap().1, Some(LevelFilter::DEBUG));
        assert_eq!(of("upcalld").unwrap().1, Some(LevelFilter::INFO));
        levels.rebase(Some("warn")).unwrap();
        assert_eq!(of("upcall").unwrap().1, Some(LevelFilter::WARN));
        assert!(levels.rebase(Some("upcall=loud")).is_err());
        assert_eq!(of("upcalld").unwrap().1, Some(LevelFilter::WARN), "as it was");
    }
}
