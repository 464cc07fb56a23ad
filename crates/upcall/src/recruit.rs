//! Making ports of what is asked for: by name, and by pattern as interfaces come and go.

use ovs_datapath::{Control, Link, Links};
use ovs_wire::datapath::Datapath;
use ovs_wire::vport::Vport;
use rustix::io::Errno;

use crate::delivery::Delivery;
use crate::members::{Members, PassedOver};
use crate::{Error, setup};

/// What ports are made and taken out with.
#[derive(Clone, Copy)]
pub(crate) struct Recruiter<'a> {
    pub(crate) control: &'a Control,
    pub(crate) links: &'a Links,
    pub(crate) dp: &'a Datapath,
    pub(crate) delivery: &'a Delivery,
    pub(crate) members: &'a Members,
}

impl Recruiter<'_> {
    /// Makes an interface a port of the datapath and serves it; does nothing if it is one already.
    pub(crate) async fn serve(&self, name: &str) -> Result<(), Error> {
        let Self { control, links, dp, delivery, members } = *self;
        let (port_id, socket) = delivery.before_port()?;
        if let Some(port) = setup::add_port(control, links, dp, name, port_id).await? {
            members.added(name, &port);
            delivery.port_added(port.port_no, socket).await;
        }
        Ok(())
    }

    /// Makes ports of the interfaces that are waited for, as far as they are there and free.
    pub(crate) async fn by_name(&self) -> Result<(), Error> {
        for name in self.members.awaited() {
            match self.serve(&name).await {
                // Or not yet.
                Ok(()) | Err(Error::NoInterface { .. }) => {}
                Err(err @ (Error::InterfaceInUse { .. } | Error::InterfaceUnusable { .. })) => {
                    tracing::warn!(%err, "an interface that was waited for cannot be a port");
                }
                Err(err) => return Err(err),
            }
        }
        Ok(())
    }

    /// Makes ports of the interfaces that patterns match. One that cannot be a port is told of once and
    /// is no hindrance to the others. `false` if that is to be tried again. `ports`: those there are.
    pub(crate) async fn by_pattern(&self, ports: &[Vport]) -> Result<bool, Error> {
        if !self.members.any_pattern() {
            return Ok(true);
        }
        let links = self.links.all().await?;
        self.members.retain(&links);
        let is_port = |link: &Link| ports.iter().any(|port| port.ifindex == Some(link.ifindex));
        let mut all = true;
        for link in links.iter().filter(|link| self.members.wants(link) && !is_port(link)) {
            all &= self.enlist(link).await;
        }
        Ok(all)
    }

    async fn enlist(&self, link: &Link) -> bool {
        let err = match self.serve(&link.name).await {
            // Or gone since.
            Ok(()) | Err(Error::NoInterface { .. }) => return true,
            Err(err) => err,
        };
        let why = match err {
            Error::InterfaceInUse { .. } => PassedOver::InUse,
            Error::InterfaceUnusable { .. } => PassedOver::Unusable,
            _ => PassedOver::Failed,
        };
        if self.members.pass_over(link.ifindex, why) {
            let interface = &link.name;
            tracing::warn!(interface, %err, "a pattern of ports matches what cannot be one; leaving it out");
        }
        why != PassedOver::Failed
    }

    /// Takes a port out of the datapath.
    pub(crate) async fn dismiss(&self, port_no: u32) -> Result<(), Error> {
        match self.control.delete_vport(self.dp.ifindex, port_no).await {
            Err(err) if !err.is(Errno::NODEV) => Err(err.into()),
            _ => {
                self.members.forget(port_no);
                Ok(())
            }
        }
    }
}
