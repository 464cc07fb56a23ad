//! The generic-netlink controller: family names to ids, groups and attribute maxima.

use netlink_bindings::nlctrl::{CtrlAttrs, McastGroupAttrs};

use crate::nl::OVS_HDR_LEN;
use crate::{AttrBuilder, WireError};

/// `GENL_ID_CTRL`: the controller's own, fixed family id.
pub const CTRL_FAMILY_ID: u16 = 0x10;
/// `CTRL_CMD_GETFAMILY`.
pub const CTRL_CMD_GETFAMILY: u8 = 3;
/// Version of the controller's protocol.
pub const CTRL_VERSION: u8 = 2;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
/// Bytes of `struct genlmsghdr`; the controller has no header of its own behind it.
const GENL_HDR_LEN: usize = 4;

/// A generic-netlink family of the running kernel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Family {
    /// Message type of its messages.
    pub id: u16,
    /// Its name.
    pub name: String,
    /// Version of its protocol.
    pub version: u32,
    /// Highest attribute number it knows: tells which attributes a kernel has (ABI of each family).
    pub attr_max: u32,
    /// Multicast groups, name and id.
    pub groups: Vec<(String, u32)>,
}

impl Family {
    /// Id of the multicast group `name`.
    pub fn group(&self, name: &str) -> Option<u32> {
        self.groups.iter().find(|(n, _)| n == name).map(|(_, id)| *id)
    }

    /// Reads a `CTRL_CMD_NEWFAMILY` message: a message's payload, generic-netlink header included.
    pub fn parse(payload: &[u8]) -> Result<Self, WireError> {
        let invalid = WireError::Invalid {
            what: "controller reply",
            offset: 0,
            why: "does not follow the controller's attribute table",
        };
        let attrs = payload.get(GENL_HDR_LEN..).ok_or(WireError::Truncated {
            what: "controller reply",
            offset: 0,
            need: GENL_HDR_LEN,
            have: payload.len(),
        })?;
        let mut family = Self::default();
        for attr in CtrlAttrs::new(attrs) {
            match attr.map_err(|_| invalid)? {
                CtrlAttrs::FamilyId(id) => family.id = id,
                CtrlAttrs::FamilyName(name) => family.name = name.to_string_lossy().into_owned(),
                CtrlAttrs::Version(version) => family.version = version,
                CtrlAttrs::Maxattr(max) => family.attr_max = max,
                CtrlAttrs::McastGroups(groups) => {
                    for group in groups {
                        family.groups.push(read_group(group.map_err(|_| invalid)?, invalid)?);
                    }
                }
                _ => {}
            }
        }
        if family.id == 0 {
            return Err(WireError::Missing { what: "family id" });
        }
        Ok(family)
    }
}

fn read_group(
    attrs: netlink_bindings::nlctrl::IterableMcastGroupAttrs<'_>,
    invalid: WireError,
) -> Result<(String, u32), WireError> {
    let (mut name, mut id) = (String::new(), 0);
    for attr in attrs {
        match attr.map_err(|_| invalid)? {
            McastGroupAttrs::Name(n) => name = n.to_string_lossy().into_owned(),
            McastGroupAttrs::Id(i) => id = i,
        }
    }
    Ok((name, id))
}

/// Appends the request for the family `name`: a message's payload.
pub fn write_get(buf: &mut Vec<u8>, name: &str) -> Result<(), WireError> {
    const _: () = assert!(OVS_HDR_LEN == GENL_HDR_LEN + 4);
    buf.extend([CTRL_CMD_GETFAMILY, CTRL_VERSION, 0, 0]);
    AttrBuilder::new(buf).str(CTRL_ATTR_FAMILY_NAME, name).finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_id_maximum_and_groups() {
        let mut reply = vec![1, 2, 0, 0];
        AttrBuilder::new(&mut reply)
            .u16(1, 33)
            .str(2, "ovs_vport")
            .u32(3, 1)
            .u32(5, 10)
            .nest(7, |b| {
                b.nest(1, |b| {
                    b.str(1, "ovs_vport").u32(2, 9);
                });
            })
            .finish()
            .unwrap();
        let family = Family::parse(&reply).unwrap();
        assert_eq!((family.id, family.version, family.attr_max), (33, 1, 10));
        assert_eq!(family.group("ovs_vport"), Some(9));
        assert_eq!(family.group("other"), None);
    }

    #[test]
    fn a_reply_without_an_id_is_refused() {
        assert_eq!(Family::parse(&[1, 2, 0, 0]), Err(WireError::Missing { what: "family id" }));
        assert!(Family::parse(&[1]).is_err());
    }
}
