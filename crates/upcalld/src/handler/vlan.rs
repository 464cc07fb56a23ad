//! Which VLANs a port carries, and how their packets are tagged there (IEEE 802.1Q, 8.6 and 8.8).

use std::fmt;

use upcall::{ActionBuf, KeySummary, VlanTci};

/// Tag protocol of an ordinary VLAN tag; the other one is that of service tags.
const TPID_8021Q: u16 = 0x8100;

/// Least and greatest id of a VLAN: 0 is that of a priority tag, 4095 is reserved.
pub(crate) const VLAN_IDS: std::ops::RangeInclusive<u16> = 1..=4094;

/// VLAN ids, a bit for each.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct VlanSet(Box<[u64; 64]>);

impl FromIterator<u16> for VlanSet {
    fn from_iter<I: IntoIterator<Item = u16>>(ids: I) -> Self {
        let mut set = Box::new([0; 64]);
        for id in ids {
            set[usize::from(id) / 64 % 64] |= 1 << (id % 64);
        }
        Self(set)
    }
}

impl fmt::Debug for VlanSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// In ranges: `10-20,30`.
impl fmt::Display for VlanSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<u16> = VLAN_IDS.filter(|id| self.contains(*id)).collect();
        if ids.is_empty() {
            return f.write_str("none");
        }
        for (number, range) in ids.chunk_by(|id, next| id + 1 == *next).enumerate() {
            let comma = if number == 0 { "" } else { "," };
            match range {
                [first, .., last] => write!(f, "{comma}{first}-{last}")?,
                [id] => write!(f, "{comma}{id}")?,
                [] => {}
            }
        }
        Ok(())
    }
}

impl VlanSet {
    fn contains(&self, id: u16) -> bool {
        self.0[usize::from(id) / 64 % 64] >> (id % 64) & 1 != 0
    }
}

/// The VLANs of a port.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Vlans {
    /// All, tags as they are; packets without a tag are in none, which is counted as VLAN 0.
    #[default]
    All,
    /// None: a port that nothing is known of, while others are kept apart.
    None,
    /// This one, without a tag.
    Access(u16),
    /// These with a tag, and one without.
    Trunk {
        /// With a tag.
        tagged: VlanSet,
        /// Without; with a tag it is taken in, too.
        native: Option<u16>,
    },
}

/// As operators see it: `all`, `none`, `10`, `trunk 10-20,30 native 5`.
impl fmt::Display for Vlans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::None => f.write_str("none"),
            Self::Access(id) => write!(f, "{id}"),
            Self::Trunk { tagged, native: None } => write!(f, "trunk {tagged}"),
            Self::Trunk { tagged, native: Some(id) } => write!(f, "trunk {tagged} native {id}"),
        }
    }
}

/// What a packet says of its VLAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tag {
    /// It has no tag.
    Absent,
    /// It has a tag with a priority alone (VLAN id 0).
    Priority(u8),
    /// It is in this VLAN.
    Vlan(u16),
    /// It has a tag that is none of ours, a service tag or one that was cut off, with this id. Such
    /// packets pass unchanged between ports that carry all VLANs.
    Foreign(u16),
}

/// How a packet leaves a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// As it came.
    Unchanged,
    /// Without a tag.
    Untagged,
    /// With a tag.
    Tagged,
}

impl Tag {
    pub(crate) fn of(key: &KeySummary) -> Self {
        match key.vlan {
            None => Self::Absent,
            Some(tci) if !tci.present() || key.vlan_tpid != TPID_8021Q => Self::Foreign(tci.vid()),
            Some(tci) if tci.vid() == 0 => Self::Priority(tci.pcp()),
            Some(tci) => Self::Vlan(tci.vid()),
        }
    }

    /// What a packet has in the form in which it came.
    fn is_of(self, form: Form) -> bool {
        match form {
            Form::Unchanged => true,
            Form::Untagged => self == Self::Absent,
            Form::Tagged => matches!(self, Self::Vlan(_)),
        }
    }
}

impl Vlans {
    /// The VLAN of a packet that comes in; `None` if the port does not carry it.
    pub(crate) fn admit(&self, tag: Tag) -> Option<u16> {
        match (self, tag) {
            (Self::All, Tag::Vlan(id) | Tag::Foreign(id)) => Some(id),
            (Self::All, Tag::Absent | Tag::Priority(_)) => Some(0),
            (Self::None, _) | (_, Tag::Foreign(_)) | (Self::Access(_), Tag::Vlan(_)) => None,
            (Self::Access(id), Tag::Absent | Tag::Priority(_)) => Some(*id),
            (Self::Trunk { native, .. }, Tag::Absent | Tag::Priority(_)) => *native,
            (Self::Trunk { tagged, native }, Tag::Vlan(id)) => {
                (tagged.contains(id) || *native == Some(id)).then_some(id)
            }
        }
    }

    /// How a packet of a VLAN that came with `tag` leaves; `None` if the port does not carry it.
    pub(crate) fn form(&self, vlan: u16, tag: Tag) -> Option<Form> {
        match self {
            Self::All if vlan == 0 || matches!(tag, Tag::Foreign(_)) => Some(Form::Unchanged),
            Self::All => Some(Form::Tagged),
            _ if matches!(tag, Tag::Foreign(_)) => None,
            Self::None => None,
            Self::Access(id) => (*id == vlan).then_some(Form::Untagged),
            Self::Trunk { native: Some(id), .. } if *id == vlan => Some(Form::Untagged),
            Self::Trunk { tagged, .. } => tagged.contains(vlan).then_some(Form::Tagged),
        }
    }

    /// The VLAN of a station behind the port when none is said: that of packets without a tag.
    pub(crate) fn of_untagged(&self) -> Option<u16> {
        self.admit(Tag::Absent)
    }

    /// Does a station of this VLAN have a place here?
    pub(crate) fn carries(&self, vlan: u16) -> bool {
        self.form(vlan, Tag::Absent).is_some()
    }
}

/// Appends what sends a packet of `vlan` that came with `tag` to all of `outputs`: first to those that get
/// it as it is, then, with its tag changed once, to the others.
pub(crate) fn send(
    actions: &mut ActionBuf,
    (vlan, tag): (u16, Tag),
    outputs: &(impl Iterator<Item = (u32, Form)> + Clone),
) {
    let (mut untagged, mut tagged) = (false, false);
    for (port, form) in outputs.clone() {
        if tag.is_of(form) {
            actions.output(port);
        } else {
            untagged |= form == Form::Untagged;
            tagged |= form == Form::Tagged;
        }
    }
    if !untagged && !tagged {
        return;
    }
    if tag != Tag::Absent {
        actions.pop_vlan();
    }
    let send_all = |actions: &mut ActionBuf, form: Form| {
        for (port, _) in outputs.clone().filter(|(_, wanted)| *wanted == form) {
            actions.output(port);
        }
    };
    if untagged {
        send_all(actions, Form::Untagged);
    }
    if tagged {
        let pcp = if let Tag::Priority(pcp) = tag { pcp } else { 0 };
        actions.push_vlan(VlanTci::new(vlan, pcp));
        send_all(actions, Form::Tagged);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use upcall::Action;

    fn trunk(ids: &[u16], native: Option<u16>) -> Vlans {
        Vlans::Trunk { tagged: ids.iter().copied().collect(), native }
    }

    #[test]
    fn vlans_are_shown_in_ranges() {
        let shown = |ids: &[u16], native| trunk(ids, native).to_string();
        assert_eq!(shown(&[12, 10, 11, 30, 4093, 4094], None), "trunk 10-12,30,4093-4094");
        assert_eq!(shown(&[1], Some(5)), "trunk 1 native 5");
        assert_eq!(shown(&[], Some(5)), "trunk none native 5");
        assert_eq!(
            format!("{:?}", trunk(&[10, 11], None)),
            "Trunk { tagged: 10-11, native: None }"
        );
        assert_eq!(
            (Vlans::All.to_string(), Vlans::Access(7).to_string()),
            ("all".into(), "7".into())
        );
    }

    #[test]
    fn a_port_takes_in_what_it_carries() {
        let access = Vlans::Access(10);
        let tags = [Tag::Absent, Tag::Priority(5), Tag::Vlan(10), Tag::Vlan(20), Tag::Foreign(10)];
        let admitted = |vlans: &Vlans| tags.map(|tag| vlans.admit(tag));
        assert_eq!(admitted(&access), [Some(10), Some(10), None, None, None]);
        assert_eq!(admitted(&trunk(&[20], None)), [None, None, None, Some(20), None]);
        let native = trunk(&[20], Some(10));
        assert_eq!(admitted(&native), [Some(10), Some(10), Some(10), Some(20), None]);
        assert_eq!(admitted(&Vlans::All), [Some(0), Some(0), Some(10), Some(20), Some(10)]);
        assert_eq!(admitted(&Vlans::None), [None; 5]);
    }

    #[test]
    fn a_port_sends_in_its_own_form() {
        let ports =
            [Vlans::All, Vlans::Access(10), trunk(&[10, 4094], None), trunk(&[20], Some(10))];
        let forms = |vlan, tag| ports.clone().map(|port| port.form(vlan, tag));
        let (tagged, untagged) = (Some(Form::Tagged), Some(Form::Untagged));
        assert_eq!(forms(10, Tag::Absent), [tagged, untagged, tagged, untagged]);
        assert_eq!(forms(4094, Tag::Vlan(4094)), [tagged, None, tagged, None]);
        assert_eq!(forms(0, Tag::Absent), [Some(Form::Unchanged), None, None, None]);
        assert_eq!(forms(10, Tag::Foreign(10)), [Some(Form::Unchanged), None, None, None]);
    }

    fn sent(tag: Tag, forms: &[Form]) -> Vec<String> {
        let mut actions = ActionBuf::new();
        let outputs = forms.iter().enumerate().map(|(port, form)| (port as u32, *form));
        send(&mut actions, (10, tag), &outputs);
        let text = |action: Action<'_>| match action {
            Action::Output(port) => port.to_string(),
            Action::PopVlan => "pop".to_owned(),
            Action::PushVlan { tci, .. } => format!("push {} {}", tci.vid(), tci.pcp()),
            other => format!("{other:?}"),
        };
        actions.actions().iter().map(|action| text(action.unwrap())).collect()
    }

    #[test]
    fn the_tag_is_changed_once_and_only_where_somebody_gets_it() {
        use Form::{Tagged, Unchanged, Untagged};
        let both = [Tagged, Untagged, Tagged];
        assert_eq!(sent(Tag::Vlan(10), &both), ["0", "2", "pop", "1"]);
        assert_eq!(sent(Tag::Absent, &both), ["1", "push 10 0", "0", "2"]);
        assert_eq!(sent(Tag::Priority(5), &both), ["pop", "1", "push 10 5", "0", "2"]);
        assert_eq!(sent(Tag::Vlan(10), &[Tagged]), ["0"]);
        assert_eq!(sent(Tag::Absent, &[Untagged]), ["0"]);
        assert_eq!(sent(Tag::Priority(0), &[Untagged]), ["pop", "0"]);
        assert_eq!(sent(Tag::Priority(3), &[Unchanged]), ["0"]);
        assert_eq!(sent(Tag::Foreign(3), &[Unchanged, Unchanged]), ["0", "1"]);
        assert!(sent(Tag::Absent, &[]).is_empty());
    }
}
