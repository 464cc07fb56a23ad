//! Logs on standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::cli::LogFormat;
use crate::exit::Exit;

/// Default when `RUST_LOG` is not set. netlink-proto dumps whole messages at its lower levels.
const DEFAULT_FILTER: &str = "info,netlink_proto=warn";

/// Starts logging.
///
/// # Errors
///
/// [`Exit::Usage`] if `RUST_LOG` cannot be understood.
pub(crate) fn start(format: LogFormat) -> Result<(), Exit> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(text) => EnvFilter::try_new(&text)
            .map_err(|err| Exit::Usage(format!("RUST_LOG is '{text}': {err}")))?,
        Err(_) => EnvFilter::new(DEFAULT_FILTER),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}
