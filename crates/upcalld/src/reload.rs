//! Reading file and flags again, and applying what can change while the daemon runs: all of it, or
//! nothing.

use std::sync::Arc;

use arc_swap::ArcSwap;
use futures::future::join_all;
use sd_notify::NotifyState;
use tokio::sync::{Mutex, oneshot};
use upcall::Dispatcher;

use crate::cli::RunArgs;
use crate::control::{Handle, Inquiry};
use crate::exit::Exit;
use crate::handler::Policy;
use crate::logging::Levels;
use crate::run::{builder, notify, serving, status};
use crate::settings::{AllSettings, Change, Settings};

/// What a daemon was started with, and what it is to do now.
pub(crate) struct Reloader<'a> {
    args: &'a RunArgs,
    levels: &'a Levels,
    current: ArcSwap<AllSettings>,
    /// One reload at a time.
    turn: Mutex<()>,
}

impl<'a> Reloader<'a> {
    pub(crate) fn new(args: &'a RunArgs, levels: &'a Levels, settings: AllSettings) -> Self {
        Self { args, levels, current: ArcSwap::from_pointee(settings), turn: Mutex::default() }
    }

    /// The settings in force.
    pub(crate) fn settings(&self) -> Arc<AllSettings> {
        self.current.load_full()
    }

    /// Reads the settings anew and applies them; says what has changed.
    ///
    /// # Errors
    ///
    /// In words, when they are wrong, one of them cannot change, or the kernel refuses; then all is as
    /// it was.
    pub(crate) async fn reload(&self, datapaths: &[Handle]) -> Result<String, String> {
        let _turn = self.turn.lock().await;
        announce();
        let applied = self.apply(datapaths).await;
        match &applied {
            Ok(changes) => tracing::info!(changes, "configuration reloaded"),
            Err(err) => tracing::error!(%err, "configuration not reloaded, nothing has changed"),
        }
        let status = match &applied {
            Ok(_) => status(&join_all(datapaths.iter().map(said)).await),
            Err(err) => format!("serving as before; reload refused: {err}"),
        };
        notify(&[NotifyState::Ready, NotifyState::Status(&status)]);
        applied
    }

    async fn apply(&self, datapaths: &[Handle]) -> Result<String, String> {
        let wanted = AllSettings::gather(self.args).map_err(|err| err.to_string())?;
        let current = self.settings();
        let (live, fixed): (Vec<_>, Vec<_>) =
            current.changes(&wanted).into_iter().partition(|(_, change)| change.live);
        if !fixed.is_empty() {
            return Err(format!(
                "cannot change while the daemon runs: {}; restart it (with hand_over no upcall is lost)",
                texts(&fixed).collect::<Vec<_>>().join("; ")
            ));
        }
        // Quotas that were set at the control socket are forgotten.
        let by_hand = join_all(datapaths.iter().map(quotas_by_hand)).await;
        let forgotten = forgotten(datapaths, &by_hand);
        if live.is_empty() && forgotten.is_empty() {
            return Ok("nothing to change".to_owned());
        }
        // What can still be refused comes first.
        let has_quotas: Vec<bool> = by_hand.iter().map(|quotas| *quotas > 0).collect();
        change_all(datapaths, &wanted.datapaths, &has_quotas).await?;
        if wanted.process.log != current.process.log
            && let Err(err) = self.levels.rebase(wanted.process.log.as_deref())
        {
            tracing::warn!(err, "what is logged stays as it was");
        }
        self.current.store(Arc::new(wanted));
        Ok(texts(&live).chain(forgotten).collect::<Vec<_>>().join("; "))
    }
}

/// How many quotas were set by hand. A datapath that is made anew has none.
async fn quotas_by_hand(handle: &Handle) -> usize {
    let asked = handle.ask(false, |reply| Inquiry::State { reply }).await;
    asked.map_or(0, |state| state.quotas_by_hand)
}

/// What a datapath says of itself for the service manager.
async fn said(handle: &Handle) -> String {
    let asked = handle.ask(false, |reply| Inquiry::State { reply }).await;
    asked.map_or_else(|_| format!("{}, being made anew", handle.name), |state| state.serving)
}

/// Says which quotas a reload forgets.
fn forgotten(datapaths: &[Handle], by_hand: &[usize]) -> Vec<String> {
    let text = |(handle, quotas): (&Handle, &usize)| {
        let whose = if datapaths.len() > 1 { format!("{}: ", handle.name) } else { String::new() };
        format!("{whose}quotas of ports set by hand: {quotas} -> none")
    };
    datapaths.iter().zip(by_hand).filter(|(_, quotas)| **quotas > 0).map(text).collect()
}

/// Changes all datapaths to what is wanted, or none: each of them first does what can be refused. One that has
/// nothing to change is not asked, unless it has quotas to forget.
async fn change_all(
    datapaths: &[Handle],
    wanted: &[Arc<Settings>],
    has_quotas: &[bool],
) -> Result<(), String> {
    let several = datapaths.len() > 1;
    let is_other = |((handle, settings), has_quotas): &((&Handle, &Arc<Settings>), &bool)| {
        **has_quotas || !handle.settings.load().changes(settings).is_empty()
    };
    let changes = datapaths.iter().zip(wanted).zip(has_quotas).filter(is_other);
    // At once: each may take as long as it takes to read its sockets empty.
    let halves = changes.map(async |((handle, settings), _)| {
        let half = Half::done(handle, settings, !several).await;
        half.map_err(|why| if several { format!("datapath {}: {why}", handle.name) } else { why })
    });
    let (mut prepared, mut refused) = (Vec::new(), None);
    for half in join_all(halves).await {
        match half {
            Ok(half) => prepared.push(half),
            Err(why) => refused = refused.or(Some(why)),
        }
    }
    if let Some(why) = refused {
        join_all(prepared.into_iter().map(|half| half.finish(false))).await;
        return Err(why);
    }
    // Also for one that is made anew from now on.
    for (handle, settings) in datapaths.iter().zip(wanted) {
        handle.settings.store(settings.clone());
    }
    join_all(prepared.into_iter().map(|half| half.finish(true))).await;
    Ok(())
}

/// A change of one datapath that cannot be refused any more.
struct Half {
    go: oneshot::Sender<bool>,
    done: oneshot::Receiver<()>,
}

impl Half {
    async fn done(handle: &Handle, wanted: &Arc<Settings>, patient: bool) -> Result<Self, String> {
        let ((go, goes), (is_done, done)) = (oneshot::channel(), oneshot::channel());
        let settings = wanted.clone();
        let step = |prepared| Inquiry::Change(Step { settings, prepared, goes, is_done });
        handle.ask(patient, step).await??;
        Ok(Self { go, done })
    }

    /// Has it completed or undone, and waits for that.
    async fn finish(self, go: bool) {
        // A datapath that has ended meanwhile is made anew as it is to be.
        let _ended = self.go.send(go);
        let _ended = self.done.await;
    }
}

/// A change as the datapath is asked for it.
pub(crate) struct Step {
    settings: Arc<Settings>,
    /// Told when nothing can be refused any more.
    prepared: oneshot::Sender<Result<(), String>>,
    /// Whether it is to be completed.
    goes: oneshot::Receiver<bool>,
    is_done: oneshot::Sender<()>,
}

/// Takes a step.
pub(crate) async fn take(step: Step, dispatcher: &Dispatcher, policy: &dyn Policy) {
    let Step { settings, prepared, goes, is_done } = step;
    let change = match dispatcher.prepare(builder(&settings)).await {
        Ok(change) => change,
        Err(err) => {
            let _nobody_waits = prepared.send(Err(Exit::from(err).to_string()));
            return;
        }
    };
    let told = prepared.send(Ok(()));
    if told.is_ok() && goes.await == Ok(true) {
        change.commit().await;
        policy.tune(&settings);
    } else {
        change.undo().await;
    }
    let _nobody_waits = is_done.send(());
}

/// How it is with a datapath, as far as a reload is concerned.
pub(crate) struct State {
    /// What it says of itself for the service manager.
    serving: String,
    quotas_by_hand: usize,
}

impl State {
    pub(crate) async fn of(dispatcher: &Dispatcher) -> Self {
        let quotas_by_hand = dispatcher.port_quotas().len();
        Self { serving: serving(&dispatcher.info().await), quotas_by_hand }
    }
}

fn texts(changes: &[(Option<String>, Change)]) -> impl Iterator<Item = String> {
    changes.iter().map(|(datapath, change)| match datapath {
        Some(name) => format!("{name}: {change}"),
        None => change.to_string(),
    })
}

/// Tells the service manager that a reload begins; READY tells that it has ended.
fn announce() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(err) => tracing::warn!(%err, "cannot tell the service manager of a reload"),
    }
}
