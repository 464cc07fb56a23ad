//! Requests to the datapath families.

use std::time::Duration;

use ovs_wire::WireError;
use ovs_wire::datapath::{self, Datapath, UserFeatures};
use ovs_wire::family::{self, CTRL_FAMILY_ID, Family};
use ovs_wire::flow::{self, Flow, FlowPut};
use ovs_wire::nl::{NLM_F_ACK, NLM_F_DUMP, NLM_F_ECHO, NLM_F_REQUEST, OvsHeader};
use ovs_wire::packet::{self, Execute};
use ovs_wire::vport::{self, Vport, VportType};
use rustix::io::Errno;

use crate::ControlError;
use crate::connection::{self, Requests};

/// How long a request may take. Kernels answer within microseconds; but `ovs_mutex` may be held for a
/// large dump, and behind it the lock of all network devices while a namespace with many is taken down.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// How long the kernel may take to delete a datapath: it unregisters its internal ports one by one, and
/// waits for all CPUs at each.
const DELETE_LIMIT: Duration = Duration::from_mins(2);

/// The families this kernel has, and what it says of them.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "named by family")]
pub struct Families {
    pub datapath: Family,
    pub vport: Family,
    pub flow: Family,
    pub packet: Family,
}

/// A connection to the kernel's datapath, in the network namespace of the thread that opened it.
/// Cheap to clone; needs the tokio runtime it was opened on.
#[derive(Debug, Clone)]
pub struct Control {
    requests: Requests,
    families: std::sync::Arc<Families>,
}

type Result<T, E = ControlError> = std::result::Result<T, E>;

impl Control {
    /// Opens a connection and resolves the families, which makes the kernel load the module if it can.
    ///
    /// # Errors
    ///
    /// [`ControlError::NoFamily`] when the module is absent, [`ControlError::Socket`] without netlink.
    pub async fn open() -> Result<Self> {
        let (requests, _) = connection::open(&[], ANSWER_LIMIT)?;
        let families = Families {
            datapath: resolve(&requests, datapath::FAMILY).await?,
            vport: resolve(&requests, vport::FAMILY).await?,
            flow: resolve(&requests, flow::FAMILY).await?,
            packet: resolve(&requests, packet::FAMILY).await?,
        };
        Ok(Self { requests, families: families.into() })
    }

    /// The families, resolved at [`Control::open`].
    pub fn families(&self) -> &Families {
        &self.families
    }

    /// Port id of the socket that asks: [`crate::Event::by_port_id`] of the changes made here.
    pub fn port_id(&self) -> u32 {
        self.requests.port_id
    }

    /// The family `name`, `None` if the kernel has none of that name: for those that not every kernel
    /// has, such as `ovs_meter`.
    pub async fn family(&self, name: &'static str) -> Result<Option<Family>> {
        match resolve(&self.requests, name).await {
            Ok(family) => Ok(Some(family)),
            Err(ControlError::NoFamily { .. }) => Ok(None),
            Err(err) => Err(err),
        }
    }

    /// Sends a request that this type has no method for and gives the payloads of the replies: for
    /// probes, and for tests of what a kernel does. `op` is the end of "refused to …"; `flags` are
    /// `NLM_F_*` beside `NLM_F_REQUEST`, with `NLM_F_ACK` or `NLM_F_DUMP` among them.
    pub async fn request(
        &self,
        op: &str,
        family: &Family,
        flags: u16,
        payload: Vec<u8>,
    ) -> Result<Vec<Vec<u8>>> {
        debug_assert!(flags & (NLM_F_ACK | NLM_F_DUMP) != 0, "every request is answered");
        self.ask(op, family, flags, payload).await
    }

    /// All datapaths of the namespace.
    pub async fn datapaths(&self) -> Result<Vec<Datapath>> {
        let op = "list datapaths".to_owned();
        let payload = request(&op, |buf| datapath::write_get(buf, None))?;
        let replies = self.ask(&op, &self.families.datapath, NLM_F_DUMP, payload).await?;
        parse_all(&op, &replies, Datapath::parse)
    }

    /// The datapath `name`, or `None` if there is none.
    pub async fn datapath(&self, name: &str) -> Result<Option<Datapath>> {
        let op = format!("look up datapath '{name}'");
        let payload = request(&op, |buf| datapath::write_get(buf, Some(name)))?;
        match self.ask(&op, &self.families.datapath, NLM_F_ACK, payload).await {
            Ok(replies) => parse_one(&op, &replies, Datapath::parse).map(Some),
            Err(err) if err.is(Errno::NODEV) => Ok(None),
            Err(err) => Err(err),
        }
    }

    /// Creates the datapath `name` with `features`.
    ///
    /// # Errors
    ///
    /// Refused with `EEXIST` if there is a datapath or device of that name, `EPERM` without
    /// `CAP_NET_ADMIN`, `EOPNOTSUPP` for features this kernel does not have.
    pub async fn create_datapath(&self, name: &str, features: UserFeatures) -> Result<Datapath> {
        let op = format!("create datapath '{name}'");
        let payload = request(&op, |buf| datapath::write_new(buf, name, features))?;
        let replies =
            self.ask(&op, &self.families.datapath, NLM_F_ACK | NLM_F_ECHO, payload).await?;
        parse_one(&op, &replies, Datapath::parse)
    }

    /// Replaces a datapath's features and, with the per-CPU bit among them, its per-CPU table.
    pub async fn set_datapath(
        &self,
        dp: &Datapath,
        features: UserFeatures,
        per_cpu_pids: Option<&[u32]>,
    ) -> Result<()> {
        let op = format!("set features {:#x} on datapath '{}'", features.bits(), dp.name);
        let payload =
            request(&op, |buf| datapath::write_set(buf, dp.ifindex, features, per_cpu_pids))?;
        self.ask(&op, &self.families.datapath, NLM_F_ACK, payload).await.map(drop)
    }

    /// Deletes a datapath with its ports and flows.
    pub async fn delete_datapath(&self, dp: &Datapath) -> Result<()> {
        let op = format!("delete datapath '{}'", dp.name);
        let payload = request(&op, |buf| datapath::write_del(buf, dp.ifindex))?;
        let flags = NLM_F_REQUEST | NLM_F_ACK;
        let requests = self.requests.within(DELETE_LIMIT);
        requests.ask(&op, self.families.datapath.id, flags, payload).await.map(drop)
    }

    /// All ports of a datapath, by number.
    pub async fn vports(&self, dp_ifindex: i32) -> Result<Vec<Vport>> {
        let op = "list ports".to_owned();
        let payload = request(&op, |buf| vport::write_dump(buf, dp_ifindex))?;
        let replies = self.ask(&op, &self.families.vport, NLM_F_DUMP, payload).await?;
        let mut ports = parse_all(&op, &replies, Vport::parse)?;
        ports.sort_by_key(|p| p.port_no);
        Ok(ports)
    }

    /// Adds the device `name` (or, for an internal port, creates it). `port_no` `None` takes the
    /// lowest free number; `upcall_pid` is where its upcalls go in per-vport mode.
    ///
    /// # Errors
    ///
    /// Refused with `ENODEV` (no such device), `EEXIST` or `EBUSY` (it is a port or a member of
    /// something already), `EBUSY` (number taken), `EINVAL` (a device that cannot be a port).
    pub async fn add_vport(
        &self,
        dp: &Datapath,
        kind: VportType,
        name: &str,
        port_no: Option<u32>,
        upcall_pid: u32,
    ) -> Result<Vport> {
        let op = format!("add port '{name}' to datapath '{}'", dp.name);
        let payload =
            request(&op, |buf| vport::write_new(buf, dp.ifindex, kind, name, port_no, upcall_pid))?;
        let replies = self.ask(&op, &self.families.vport, NLM_F_ACK | NLM_F_ECHO, payload).await?;
        parse_one(&op, &replies, Vport::parse)
    }

    /// Sends a port's upcalls to the socket with this port id (per-vport mode).
    pub async fn set_vport_upcall_pid(
        &self,
        dp_ifindex: i32,
        port_no: u32,
        upcall_pid: u32,
    ) -> Result<()> {
        let op = format!("set the upcall socket of port {port_no}");
        let payload =
            request(&op, |buf| vport::write_set_upcall_pid(buf, dp_ifindex, port_no, upcall_pid))?;
        self.ask(&op, &self.families.vport, NLM_F_ACK, payload).await.map(drop)
    }

    /// Removes a port from its datapath.
    pub async fn delete_vport(&self, dp_ifindex: i32, port_no: u32) -> Result<()> {
        let op = format!("remove port {port_no}");
        let payload = request(&op, |buf| vport::write_del(buf, dp_ifindex, port_no))?;
        self.ask(&op, &self.families.vport, NLM_F_ACK, payload).await.map(drop)
    }

    /// Installs a flow, or replaces the actions of the one with its key.
    pub async fn put_flow(&self, put: &FlowPut<'_>) -> Result<()> {
        let op = "install a flow".to_owned();
        let payload = request(&op, |buf| put.write_payload(buf))?;
        self.ask(&op, &self.families.flow, NLM_F_ACK, payload).await.map(drop)
    }

    /// The flow with `key`, handed to `read`; `None` if there is none.
    pub async fn flow<T>(
        &self,
        dp_ifindex: i32,
        key: &[u8],
        read: impl FnOnce(&Flow<'_>) -> T,
    ) -> Result<Option<T>> {
        let op = "look up a flow".to_owned();
        let payload =
            request(&op, |buf| flow::write_by_key(buf, flow::cmd::GET, dp_ifindex, Some(key)))?;
        match self.ask(&op, &self.families.flow, NLM_F_ACK, payload).await {
            Ok(replies) => {
                let reply = first(&op, &replies)?;
                let (_, flow) = Flow::parse(reply).map_err(bad_reply(&op))?;
                Ok(Some(read(&flow)))
            }
            Err(err) if err.is(Errno::NOENT) => Ok(None),
            Err(err) => Err(err),
        }
    }

    /// Every flow of a datapath, handed to `read` one by one. The whole dump is held in memory while
    /// it lasts: for tools and tests, not for a revalidator.
    pub async fn flows<T>(
        &self,
        dp_ifindex: i32,
        mut read: impl FnMut(&Flow<'_>) -> T,
    ) -> Result<Vec<T>> {
        let op = "list flows".to_owned();
        let payload =
            request(&op, |buf| flow::write_by_key(buf, flow::cmd::GET, dp_ifindex, None))?;
        let replies = self.ask(&op, &self.families.flow, NLM_F_DUMP, payload).await?;
        replies
            .iter()
            .map(|r| Flow::parse(r).map(|(_, f)| read(&f)).map_err(bad_reply(&op)))
            .collect()
    }

    /// Deletes the flow with `key`, or all flows.
    ///
    /// # Errors
    ///
    /// Refused with `ENOENT` if there is no such flow.
    pub async fn delete_flow(&self, dp_ifindex: i32, key: Option<&[u8]>) -> Result<()> {
        let op = if key.is_some() { "delete a flow" } else { "delete all flows" }.to_owned();
        let payload = request(&op, |buf| flow::write_by_key(buf, flow::cmd::DEL, dp_ifindex, key))?;
        self.ask(&op, &self.families.flow, NLM_F_ACK, payload).await.map(drop)
    }

    /// Gives a packet to the datapath and waits for the verdict on the request.
    pub async fn execute(&self, execute: &Execute<'_>) -> Result<()> {
        let op = "execute actions on a packet".to_owned();
        let header = OvsHeader {
            cmd: packet::cmd::EXECUTE,
            version: packet::VERSION,
            dp_ifindex: execute.dp_ifindex,
        };
        let payload = request(&op, |buf| header.write(buf, |b| execute.fill(b)))?;
        self.ask(&op, &self.families.packet, NLM_F_ACK, payload).await.map(drop)
    }

    async fn ask(
        &self,
        op: &str,
        family: &Family,
        flags: u16,
        payload: Vec<u8>,
    ) -> Result<Vec<Vec<u8>>> {
        self.requests.ask(op, family.id, flags | NLM_F_REQUEST, payload).await
    }
}

async fn resolve(requests: &Requests, name: &'static str) -> Result<Family> {
    let op = format!("find the family '{name}'");
    let payload = request(&op, |buf| family::write_get(buf, name))?;
    let flags = NLM_F_REQUEST | NLM_F_ACK;
    match requests.ask(&op, CTRL_FAMILY_ID, flags, payload).await {
        Ok(replies) => parse_one(&op, &replies, |r| Family::parse(r).map(|f| (0, f))),
        Err(err) if err.is(Errno::NOENT) => Err(ControlError::NoFamily { family: name }),
        Err(err) => Err(err),
    }
}

fn request(op: &str, write: impl FnOnce(&mut Vec<u8>) -> Result<(), WireError>) -> Result<Vec<u8>> {
    let mut buf = Vec::with_capacity(128);
    write(&mut buf).map_err(|source| ControlError::BadRequest { op: op.to_owned(), source })?;
    Ok(buf)
}

fn bad_reply(op: &str) -> impl Fn(WireError) -> ControlError {
    move |source| ControlError::BadReply { op: op.to_owned(), source }
}

fn parse_all<T>(
    op: &str,
    replies: &[Vec<u8>],
    parse: impl Fn(&[u8]) -> Result<(u8, T), WireError>,
) -> Result<Vec<T>> {
    replies.iter().map(|r| parse(r).map(|(_, t)| t).map_err(bad_reply(op))).collect()
}

fn parse_one<T>(
    op: &str,
    replies: &[Vec<u8>],
    parse: impl Fn(&[u8]) -> Result<(u8, T), WireError>,
) -> Result<T> {
    parse(first(op, replies)?).map(|(_, t)| t).map_err(bad_reply(op))
}

fn first<'r>(op: &str, replies: &'r [Vec<u8>]) -> Result<&'r [u8]> {
    let missing = || bad_reply(op)(WireError::Missing { what: "the reply" });
    replies.first().map(Vec::as_slice).ok_or_else(missing)
}

#[cfg(test)]
mod tests;
