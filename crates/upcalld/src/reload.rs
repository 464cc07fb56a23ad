//! Reading file and flags again, and applying what can change while the daemon runs: all of it, or
//! nothing.

use std::sync::Arc;

use arc_swap::ArcSwap;
use sd_notify::NotifyState;
use tokio::sync::Mutex;
use upcall::Dispatcher;

use crate::cli::RunArgs;
use crate::exit::Exit;
use crate::handler::Policy;
use crate::logging::Levels;
use crate::run::{builder, notify, serving};
use crate::settings::{Change, Settings};

/// What a daemon was started with, and what it is to do now.
pub(crate) struct Reloader<'a> {
    args: &'a RunArgs,
    levels: &'a Levels,
    current: ArcSwap<Settings>,
    /// One reload at a time.
    turn: Mutex<()>,
}

impl<'a> Reloader<'a> {
    pub(crate) fn new(args: &'a RunArgs, levels: &'a Levels, settings: Settings) -> Self {
        Self { args, levels, current: ArcSwap::from_pointee(settings), turn: Mutex::default() }
    }

    /// The settings in force.
    pub(crate) fn settings(&self) -> Arc<Settings> {
        self.current.load_full()
    }

    /// Reads the settings anew and applies them; says what has changed.
    ///
    /// # Errors
    ///
    /// In words, when they are wrong, one of them cannot change, or the kernel refuses; then all is as
    /// it was.
    pub(crate) async fn reload(
        &self,
        dispatcher: &Dispatcher,
        policy: &dyn Policy,
    ) -> Result<String, String> {
        let _turn = self.turn.lock().await;
        announce();
        let applied = self.apply(dispatcher, policy).await;
        match &applied {
            Ok(changes) => tracing::info!(changes, "configuration reloaded"),
            Err(err) => tracing::error!(%err, "configuration not reloaded, nothing has changed"),
        }
        let status = match &applied {
            Ok(_) => serving(&dispatcher.info().await),
            Err(err) => format!("serving as before; reload refused: {err}"),
        };
        notify(&[NotifyState::Ready, NotifyState::Status(&status)]);
        applied
    }

    async fn apply(&self, dispatcher: &Dispatcher, policy: &dyn Policy) -> Result<String, String> {
        let wanted = Settings::gather(self.args).map_err(|err| err.to_string())?;
        let current = self.settings();
        let (live, fixed): (Vec<_>, Vec<_>) =
            current.changes(&wanted).into_iter().partition(|change| change.live);
        if !fixed.is_empty() {
            return Err(format!(
                "cannot change while the daemon runs: {}; restart it (with hand_over no upcall is lost)",
                list(&fixed)
            ));
        }
        // Quotas that were set at the control socket are forgotten.
        let by_hand = dispatcher.port_quotas().len();
        let mut changes: Vec<String> = live.iter().map(Change::to_string).collect();
        if by_hand > 0 {
            changes.push(format!("quotas of ports set by hand: {by_hand} -> none"));
        }
        if changes.is_empty() {
            return Ok("nothing to change".to_owned());
        }
        // What can still be refused comes first.
        dispatcher
            .reconfigure(builder(&wanted))
            .await
            .map_err(|err| Exit::from(err).to_string())?;
        policy.tune(&wanted);
        if wanted.log != current.log
            && let Err(err) = self.levels.rebase(wanted.log.as_deref())
        {
            tracing::warn!(err, "what is logged stays as it was");
        }
        self.current.store(Arc::new(wanted));
        Ok(changes.join("; "))
    }
}

fn list(changes: &[Change]) -> String {
    let texts: Vec<_> = changes.iter().map(Change::to_string).collect();
    texts.join("; ")
}

/// Tells the service manager that a reload begins; READY tells that it has ended.
fn announce() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(err) => tracing::warn!(%err, "cannot tell the service manager of a reload"),
    }
}
