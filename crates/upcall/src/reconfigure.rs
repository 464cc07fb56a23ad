//! Changing what a running dispatcher is to do: all of it or nothing.

use tokio::sync::{MutexGuard, oneshot};

use crate::delivery::Delivery;
use crate::recruit::Recruiter;
use crate::shared::FlowLife;
use crate::{
    Builder, Dispatcher, Error, Limits, PortRates, PortSpec, QueueLimits, Shape, places, setup,
};

impl Builder {
    pub(crate) fn life(&self) -> FlowLife {
        FlowLife { idle: self.flow_idle, hard: self.flow_hard, sweep_interval: self.sweep_interval }
    }

    /// What cannot be changed while a dispatcher runs: by name, as text.
    fn fixed(&self) -> [(&'static str, String); 8] {
        let limits = Limits {
            flows_max: 0,
            storm_shield: false,
            funnel: false,
            port_rates: PortRates::default(),
            queue: QueueLimits { port_upcalls_max: 0, ..self.limits.queue },
            ..self.limits
        };
        [
            ("datapath", self.datapath.clone()),
            ("install", format!("{:?}", self.install)),
            ("answer_from_plan", self.answer_from_plan.to_string()),
            ("lane_by", format!("{:?}", self.lane_by)),
            ("sample_userdata", format!("{:?}", self.sample_userdata)),
            ("keep", self.keep.to_string()),
            ("on_port_gone", format!("{:?}", self.on_port_gone)),
            ("limits", format!("{limits:?}")),
        ]
    }

    fn refuse_fixed(&self, wanted: &Self) -> Result<(), Error> {
        let pairs = self.fixed().into_iter().zip(wanted.fixed());
        let mut changed = pairs.filter(|((_, is), (_, wanted))| is != wanted);
        match changed.next() {
            Some(((option, is), (_, wanted))) => Err(Error::Fixed { option, is, wanted }),
            None => Ok(()),
        }
    }
}

impl Dispatcher {
    /// Changes a running dispatcher to what `wanted` says, without losing an upcall or its order: ports
    /// (which are asked for from now on, those no longer asked for are taken out), [`Builder::shape`] as
    /// by [`Dispatcher::reshape`], [`Builder::flow_idle`], [`Builder::flow_hard`], [`Builder::sweep_interval`],
    /// and of [`Limits`] `flows_max`, `storm_shield`, `funnel`, `port_rates` and `queue.port_upcalls_max`. Changed
    /// rates begin with full buckets, and quotas of single ports ([`Dispatcher::set_port_quota`]) are forgotten.
    /// [`Builder::takeover`] and what is inherited count at the start alone.
    ///
    /// # Errors
    ///
    /// [`Error::Fixed`] if another option differs from what it is, and whatever [`Builder::start`] would
    /// refuse; then all stays as it was.
    pub async fn reconfigure(&self, wanted: Builder) -> Result<(), Error> {
        self.prepare(wanted).await?.commit().await;
        Ok(())
    }

    /// The part of [`Dispatcher::reconfigure`] that can be refused: ports that are new and the shape. With
    /// several dispatchers all are prepared before one is committed, so that all change or none.
    ///
    /// # Errors
    ///
    /// As [`Dispatcher::reconfigure`]; then all is as it was.
    pub async fn prepare(&self, wanted: Builder) -> Result<Prepared<'_>, Error> {
        let current = self.options.lock().await;
        current.refuse_fixed(&wanted)?;
        let (specs, specs_were) = (setup::check_names(&wanted)?, setup::check_names(&current)?);
        wanted.shape.placement.check(&places::topology()?)?;
        if let Some(failure) = self.shared.failure.borrow().clone() {
            return Err(failure.into());
        }
        let mut prepared =
            Prepared { dispatcher: self, current, wanted, specs, specs_were, reshaped: false };
        match prepared.try_out().await {
            Ok(()) => Ok(prepared),
            Err(err) => {
                prepared.undo().await;
                Err(err)
            }
        }
    }

    /// Changes what the dispatcher receives with, under load, without losing an upcall or its order:
    /// the kernel is told of new sockets, the old ones are read empty and closed, then the new ones are
    /// read.
    ///
    /// # Errors
    ///
    /// As [`Builder::start`]; then all stays as it was.
    pub async fn reshape(&self, shape: Shape) -> Result<(), Error> {
        let mut current = self.options.lock().await;
        shape.placement.check(&places::topology()?)?;
        let mut delivery = self.delivery.lock().await;
        self.reshaper.replace(&mut delivery, shape.clone()).await?;
        current.shape = shape;
        Ok(())
    }

    fn recruiter<'a>(&'a self, delivery: &'a Delivery) -> Recruiter<'a> {
        let Self { control, links, dp, created, .. } = self;
        Recruiter { control, links, dp, delivery, members: &created.members }
    }

    /// Makes ports of the names that were not asked for before. What can be refused is found out before
    /// anything is changed.
    async fn enlist(&self, delivery: &Delivery, specs: &[PortSpec]) -> Result<(), Error> {
        let names = self.created.members.ask_for(specs);
        for name in &names {
            setup::check_port(&self.control, &self.links, &self.dp, name).await?;
        }
        for name in &names {
            self.recruiter(delivery).serve(name).await?;
        }
        Ok(())
    }

    /// From now on these ports are asked for and no others.
    async fn settle_for(&self, delivery: &Delivery, specs: Vec<PortSpec>) {
        for port_no in self.created.members.keep(specs) {
            if let Err(err) = self.recruiter(delivery).dismiss(port_no).await {
                tracing::warn!(%err, port = port_no, "cannot take out a port");
            }
        }
    }

    /// For sockets that are opened from now on.
    fn set_shield(&self, storm_shield: bool) {
        self.shared.limits.rcu(|limits| Limits { storm_shield, ..**limits });
    }

    /// Has the ports looked at, and waits until the handler knows them.
    async fn follow_ports(&self) {
        let (done, followed) = oneshot::channel();
        // A keeper that has ended has said so: it is a failure of its own.
        if self.follow_now.send(done).await.is_ok() {
            let _ended = followed.await;
        }
    }
}

/// A change of a dispatcher that nothing can refuse any more. As long as it is there, no other begins. To be
/// committed or undone: dropped, it leaves new ports and the new shape in force, and the rest as it was.
#[must_use = "a change that is neither committed nor undone is half done"]
pub struct Prepared<'a> {
    dispatcher: &'a Dispatcher,
    current: MutexGuard<'a, Builder>,
    wanted: Builder,
    specs: Vec<PortSpec>,
    specs_were: Vec<PortSpec>,
    reshaped: bool,
}

impl Prepared<'_> {
    async fn try_out(&mut self) -> Result<(), Error> {
        let Self { dispatcher, current, wanted, specs, .. } = self;
        let mut delivery = dispatcher.delivery.lock().await;
        dispatcher.enlist(&delivery, specs).await?;
        let shield = wanted.limits.storm_shield;
        if current.shape != wanted.shape || current.limits.storm_shield != shield {
            dispatcher.set_shield(shield);
            dispatcher.reshaper.replace(&mut delivery, wanted.shape.clone()).await?;
            self.reshaped = true;
        }
        Ok(())
    }

    /// Completes it: ports that leave, limits, rates, times.
    pub async fn commit(self) {
        let Self { dispatcher, mut current, wanted, specs, .. } = self;
        let delivery = dispatcher.delivery.lock().await;
        dispatcher.settle_for(&delivery, specs).await;
        dispatcher.shared.tune(wanted.limits, wanted.life());
        drop(delivery);
        *current = Builder { inherited: Vec::new(), ..wanted };
        dispatcher.follow_ports().await;
    }

    /// Makes it as it was.
    pub async fn undo(self) {
        let Self { dispatcher, current, specs_were, reshaped, .. } = self;
        let mut delivery = dispatcher.delivery.lock().await;
        dispatcher.set_shield(current.limits.storm_shield);
        if reshaped {
            let back = dispatcher.reshaper.replace(&mut delivery, current.shape.clone()).await;
            if let Err(err) = back {
                tracing::error!(%err, "cannot take back a change of shape");
            }
        }
        dispatcher.settle_for(&delivery, specs_were).await;
        drop(delivery);
        // Sockets of ports that were tried are closed, and the handler knows that the ports are gone.
        dispatcher.follow_ports().await;
    }
}
