//! One datapath of the process: started, served, made anew where that is wanted, ended.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, watch as watched};
use tracing::Span;
use upcall::{Builder, Dispatcher, Stats};

use super::{Daemon, End, announce, builder};
use crate::control::{Handle, History, INQUIRIES_MAX, Inquiry};
use crate::dispatch_mode::told::Teller;
use crate::exit::Exit;
use crate::hand_over::{Inherited, Store};
use crate::handler::{self, Policy};
use crate::report::Report;
use crate::settings::Settings;
use crate::top::snapshot::Looks;
use crate::trace::Traces;

/// Pause before a datapath that was deleted is made anew.
const RECREATE_PAUSE: Duration = Duration::from_millis(200);
/// Longest pause before that is tried again, where other datapaths are served meanwhile.
const RECREATE_PAUSE_MAX: Duration = Duration::from_secs(10);

/// What lasts as long as a datapath is to be served, whatever becomes of it.
pub(super) struct Datapath<'a> {
    pub(super) daemon: &'a Daemon<'a>,
    pub(super) handle: Handle,
    /// What is logged says which datapath it is about, where there are several.
    pub(super) span: Span,
    pub(super) inquiries: mpsc::Receiver<Inquiry>,
    inherited: Inherited,
    pub(super) store: Store,
    pub(super) history: RefCell<History>,
    pub(super) traces: Traces,
    pub(super) looks: Looks,
    is_alone: bool,
}

/// A dispatcher at work.
pub(super) struct Running {
    pub(super) dispatcher: Dispatcher,
    pub(super) policy: Arc<dyn Policy>,
    pub(super) teller: Teller,
    /// As it was started with.
    pub(super) settings: Arc<Settings>,
}

/// How the service of a datapath ended, if not by an error.
pub(super) enum Ended {
    /// The process is to end so.
    Asked(End),
    /// Somebody deleted the datapath, and it is to be made anew.
    Deleted(upcall::Failure),
}

impl<'a> Datapath<'a> {
    pub(super) fn new(
        daemon: &'a Daemon<'a>,
        settings: Arc<Settings>,
        inherited: Inherited,
    ) -> Self {
        let name = settings.datapath.clone();
        let all = daemon.reloader.settings();
        let is_alone = all.datapaths.len() == 1;
        let span = if is_alone { Span::none() } else { tracing::error_span!("dp", %name) };
        let store = Store::new(all.process.hand_over, &name, &inherited);
        let (sender, inquiries) = mpsc::channel(INQUIRIES_MAX);
        let settings = Arc::new(ArcSwap::new(settings));
        let (is_served, attended_ms) = (Arc::default(), Arc::default());
        let handle = Handle { name, settings, inquiries: sender, is_served, attended_ms };
        Self {
            daemon,
            handle,
            span,
            inquiries,
            inherited,
            store,
            history: RefCell::default(),
            traces: Traces::default(),
            looks: Looks::default(),
            is_alone,
        }
    }

    /// Starts a dispatcher with what was inherited, once.
    pub(super) async fn start(&mut self) -> Result<Running, Exit> {
        let settings = self.handle.settings.load_full();
        let policy = handler::from_settings(&settings);
        let Inherited { sockets, in_flight, .. } = std::mem::take(&mut self.inherited);
        let builder = in_flight.iter().fold(builder(&settings), Builder::inherit_in_flight);
        let dispatcher = builder.inherit(sockets).start(policy.clone()).await?;
        self.store.update(&dispatcher).await;
        let teller = Teller::listen(&settings.datapath);
        announce(&dispatcher, &settings).await;
        self.handle.attended_ms.store(self.daemon.now_ms(), Ordering::Relaxed);
        self.handle.is_served.store(true, Ordering::Relaxed);
        Ok(Running { dispatcher, policy, teller, settings })
    }

    /// Serves it until the process ends, or it cannot be served any more.
    pub(super) async fn serve(
        mut self,
        mut running: Running,
        mut stop: watched::Receiver<Option<End>>,
    ) -> Result<(), Exit> {
        loop {
            let ended = self.watch(&running, &mut stop).await;
            self.handle.is_served.store(false, Ordering::Relaxed);
            let end = if let Ok(Ended::Asked(end)) = ended { end } else { End::ForGood };
            let finished = self.finish(running, end).await;
            // What ended it comes before what went wrong while ending.
            let ended = ended?;
            finished?;
            let Ended::Deleted(failure) = ended else { return Ok(()) };
            tracing::warn!(%failure, "making the datapath anew");
            match self.make_anew(&mut stop).await? {
                Some(next) => running = next,
                None => return Ok(()),
            }
        }
    }

    /// `None` if the process ends meanwhile. That it cannot be done is no reason to take other datapaths down.
    async fn make_anew(
        &mut self,
        stop: &mut watched::Receiver<Option<End>>,
    ) -> Result<Option<Running>, Exit> {
        let mut pause = RECREATE_PAUSE;
        loop {
            // Whoever deletes it again and again must not keep us busy.
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = stop.wait_for(Option::is_some) => return Ok(None),
            }
            match self.start().await {
                Ok(running) => return Ok(Some(running)),
                Err(err) if self.is_alone => return Err(err),
                Err(err) => {
                    pause = (2 * pause).min(RECREATE_PAUSE_MAX);
                    tracing::warn!(%err, again_in = ?pause, "cannot make the datapath anew");
                }
            }
        }
    }

    /// Ends a dispatcher, and prints its last counters if that is wanted.
    async fn finish(&mut self, running: Running, end: End) -> Result<(), Exit> {
        let (info, policy) = (running.dispatcher.info().await, running.policy.clone());
        let stats = self.end(running, end).await;
        if self.daemon.stats.is_some() {
            self.daemon.printer.print_last(&Report::new(true, &info, &stats?, &*policy));
        }
        Ok(())
    }

    /// Ends a dispatcher; to a successor it hands over what it has, if that is wanted.
    pub(super) async fn end(&mut self, running: Running, end: End) -> Result<Stats, upcall::Error> {
        if end == End::ToSuccessor && self.store.is_enabled() {
            self.store.update(&running.dispatcher).await;
            running.dispatcher.hand_over().await
        } else {
            running.dispatcher.stop().await
        }
    }
}
