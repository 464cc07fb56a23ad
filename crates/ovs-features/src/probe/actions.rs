//! Actions, asked for by installing flows on a datapath of our own.

use ovs_datapath::{Control, ControlError};
use ovs_wire::AttrBuilder;
use ovs_wire::action::{Action, Actions};
use ovs_wire::flow::FlowPut;
use ovs_wire::key::{EthernetKey, Ipv4Key, KeyAttr, MacAddr};
use ovs_wire::nl::{NLM_F_ACK, OvsHeader};
use ovs_wire::{Attrs, family::Family};
use rustix::io::Errno;

use super::Feature;
use crate::ask::Ask;
use crate::finding::{Facts, Finding, Support};

/// `ENOTSUPP` of the kernel, which has no name in user space: connection tracking compiled out
/// (`net/openvswitch/conntrack.h`).
const ENOTSUPP: i32 = 524;
const METER_FEATURES: u8 = 1;
const METER_VERSION: u8 = 1;
const METER_ATTR_MAX_METERS: u16 = 7;
const ETH_P_IP: u16 = 0x0800;

/// One flow for each action, all with the key of [`key`]: IPv4, which CT and `DEC_TTL` demand.
fn asked() -> [(Feature, Action<'static>); 6] {
    let none = Actions::new(&[]);
    [
        (Feature::Drop, Action::Drop(0)),
        // A group that nobody has to listen to.
        (Feature::Psample, Action::Psample { group: 0, cookie: None }),
        (
            Feature::CheckPktLen,
            Action::CheckPktLen { pkt_len: 100, greater: none, less_equal: none },
        ),
        (Feature::DecTtl, Action::DecTtl(none)),
        (Feature::Ct, Action::Ct(&[])),
        (Feature::Meters, Action::Meter(0)),
    ]
}

/// Asks for every action. First for none at all: only where that flow is taken does a refusal tell
/// anything about an action.
pub(super) async fn probe(ask: &impl Ask) -> Vec<(Feature, Finding)> {
    let baseline = ask.take_flow(&[]).await;
    let mut found = Vec::new();
    for (feature, action) in asked() {
        let finding = match &baseline {
            Err(err) => Finding::open(feature.title(), err),
            Ok(()) => conclude(feature, ask.take_flow(&encode(&action)).await),
        };
        found.push((feature, finding));
    }
    found
}

fn encode(action: &Action<'_>) -> Vec<u8> {
    let mut buf = Vec::new();
    action.write(&mut AttrBuilder::new(&mut buf));
    buf
}

/// Unknown actions are `EINVAL` (`__ovs_nla_copy_actions`, `net/openvswitch/flow_netlink.c`), compiled
/// out ones `EOPNOTSUPP` or `ENOTSUPP`.
fn conclude(feature: Feature, answer: Result<(), ControlError>) -> Finding {
    let refusals = [Errno::INVAL.raw_os_error(), Errno::OPNOTSUPP.raw_os_error(), ENOTSUPP];
    let request = format!("install a flow with {}", feature.title());
    match answer {
        Ok(()) => feature
            .finding(Support::Available, "a flow with it was installed and deleted")
            .with(Facts::request(request)),
        Err(ControlError::Refused { errno, ext_ack, .. }) if refusals.contains(&errno) => {
            let err = ControlError::Refused { op: request, errno, ext_ack };
            Finding::refused(feature.title(), Support::Unavailable, &err)
        }
        Err(err) => Finding::open(feature.title(), &err),
    }
}

/// Key of an IPv4 packet that no host sends.
fn key() -> Vec<u8> {
    // Protocol 253 is for experiments (RFC 3692).
    let ip = Ipv4Key { proto: 253, ttl: 64, ..Ipv4Key::from_bytes(&[0; 12]) };
    let ethernet =
        EthernetKey { src: MacAddr([2, 0, 0, 0, 0, 1]), dst: MacAddr([2, 0, 0, 0, 0, 2]) };
    let mut buf = Vec::new();
    let mut b = AttrBuilder::new(&mut buf);
    let attrs = [
        KeyAttr::InPort(0),
        KeyAttr::Ethernet(ethernet),
        KeyAttr::EtherType(ETH_P_IP),
        KeyAttr::Ipv4(ip),
    ];
    for attr in attrs {
        attr.write(&mut b);
    }
    buf
}

/// Installs a flow marked as a probe, which only keeps the kernel from logging a refusal, and deletes
/// it.
pub(crate) async fn try_flow(
    control: &Control,
    dp_ifindex: i32,
    actions: &[u8],
) -> Result<(), ControlError> {
    let key = key();
    let put = FlowPut { dp_ifindex, key: &key, mask: None, actions, probe: true, ufid: None };
    let taken = control.put_flow(&put).await;
    let deleted = match control.delete_flow(dp_ifindex, Some(&key)).await {
        Err(err) if err.is(Errno::NOENT) => Ok(()),
        other => other,
    };
    taken.and(deleted)
}

/// Adds to a finding that meters are there how many there can be (`OVS_METER_CMD_FEATURES`).
pub(super) async fn meters_max(
    control: &Control,
    dp_ifindex: i32,
    family: &Family,
) -> Result<Option<u32>, ControlError> {
    let header = OvsHeader { cmd: METER_FEATURES, version: METER_VERSION, dp_ifindex };
    let mut payload = Vec::new();
    let op = "tell the limits of meters";
    header
        .write(&mut payload, |_| {})
        .map_err(|source| ControlError::BadRequest { op: op.to_owned(), source })?;
    let replies = control.request(op, family, NLM_F_ACK, payload).await?;
    Ok(replies.first().and_then(|reply| read_max(reply)))
}

fn read_max(reply: &[u8]) -> Option<u32> {
    let (_, attrs) = OvsHeader::split(reply).ok()?;
    Attrs::new(attrs).find(METER_ATTR_MAX_METERS).ok()??.u32("MAX_METERS").ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ask::models::{Model, refused};

    #[tokio::test]
    async fn a_refused_action_is_unavailable_and_the_others_are_there() {
        let without_actions = vec![ovs_wire::action::kind::DROP, ovs_wire::action::kind::PSAMPLE];
        let model = Model { without_actions, ..Model::new(Some(0b1111)) };
        for (feature, finding) in probe(&model).await {
            let expected = match feature {
                Feature::Drop | Feature::Psample => Support::Unavailable,
                _ => Support::Available,
            };
            assert_eq!(finding.support, expected, "{feature:?}");
        }
    }

    #[tokio::test]
    async fn where_no_flow_is_taken_a_refusal_says_nothing_of_the_action() {
        let model = Model { refuses_all: Some(Errno::INVAL), ..Model::new(Some(0b1111)) };
        assert!(probe(&model).await.iter().all(|(_, f)| !f.support.is_conclusive()));
    }

    #[test]
    fn only_the_refusals_of_unknown_actions_are_a_no() {
        let support = |errno| conclude(Feature::Ct, Err(refused(errno))).support;
        assert_eq!(support(Errno::INVAL), Support::Unavailable);
        assert_eq!(support(Errno::from_raw_os_error(ENOTSUPP)), Support::Unavailable);
        assert!(!support(Errno::PERM).is_conclusive());
        assert!(!support(Errno::NOMEM).is_conclusive());
        assert_eq!(conclude(Feature::Ct, Ok(())).support, Support::Available);
    }

    #[test]
    fn the_limit_of_meters_is_read() {
        let mut reply = Vec::new();
        let header = OvsHeader { cmd: METER_FEATURES, version: 1, dp_ifindex: 3 };
        header
            .write(&mut reply, |b| {
                b.u32(METER_ATTR_MAX_METERS, 7);
            })
            .unwrap();
        assert_eq!(read_max(&reply), Some(7));
        assert_eq!(read_max(&[]), None);
    }
}
