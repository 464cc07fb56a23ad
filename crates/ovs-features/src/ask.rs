//! The questions that change a datapath, apart from what their answers mean: a test answers them as
//! a kernel would that is not there to be asked.

use ovs_datapath::{Control, ControlError};
use ovs_wire::datapath::{Datapath, UserFeatures};

/// One datapath that may be changed.
pub(crate) trait Ask {
    /// Replaces its features, and its per-CPU table if there is one to set: in one SET, because the
    /// kernel takes a table only from the SET that has the per-CPU bit.
    async fn set(&self, features: UserFeatures, table: Option<&[u32]>) -> Result<(), ControlError>;
    /// What the kernel says of it.
    async fn get(&self) -> Result<Datapath, ControlError>;
    /// Would the kernel install a flow with these actions? It is not there afterwards.
    async fn take_flow(&self, actions: &[u8]) -> Result<(), ControlError>;
}

/// A datapath of this kernel.
#[derive(Debug)]
pub(crate) struct OnKernel<'a> {
    pub(crate) control: &'a Control,
    pub(crate) dp: &'a Datapath,
}

impl Ask for OnKernel<'_> {
    async fn set(&self, features: UserFeatures, table: Option<&[u32]>) -> Result<(), ControlError> {
        self.control.set_datapath(self.dp, features, table).await
    }

    async fn get(&self) -> Result<Datapath, ControlError> {
        let gone = || ControlError::Refused {
            op: format!("look up datapath '{}'", self.dp.name),
            errno: rustix::io::Errno::NODEV.raw_os_error(),
            ext_ack: None,
        };
        self.control.datapath(&self.dp.name).await?.ok_or_else(gone)
    }

    async fn take_flow(&self, actions: &[u8]) -> Result<(), ControlError> {
        crate::probe::try_flow(self.control, self.dp.ifindex, actions).await
    }
}

/// Kernels that are not there to be asked, in what they do with features, tables and flows.
#[cfg(test)]
pub(crate) mod models {
    use super::*;
    use rustix::io::Errno;
    use std::cell::RefCell;

    /// Facts of `ovs_dp_cmd_set` and `ovs_dp_change` (`net/openvswitch/datapath.c`), by version.
    #[derive(Debug)]
    pub(crate) struct Model {
        /// Bits it has; `None`: it stores whatever it is told (before 5.4).
        pub(crate) known: Option<u32>,
        /// GET tells the table (6.1).
        pub(crate) reports_table: bool,
        /// Types of actions it refuses.
        pub(crate) without_actions: Vec<u16>,
        /// Refuses everything with this.
        pub(crate) refuses_all: Option<Errno>,
        /// Refuses tables with this, after it applied the features.
        pub(crate) refuses_tables: Option<Errno>,
        pub(crate) state: RefCell<Datapath>,
        pub(crate) sets: RefCell<Vec<(u32, Option<usize>)>>,
    }

    impl Model {
        pub(crate) fn new(known: Option<u32>) -> Self {
            Self {
                known,
                reports_table: known == Some(0b1111),
                without_actions: Vec::new(),
                refuses_all: None,
                refuses_tables: None,
                state: RefCell::default(),
                sets: RefCell::default(),
            }
        }

        pub(crate) fn features(&self) -> u32 {
            self.state.borrow().features.bits()
        }
    }

    pub(crate) fn refused(errno: Errno) -> ControlError {
        let errno = errno.raw_os_error();
        ControlError::Refused { op: "set features".into(), errno, ext_ack: None }
    }

    impl Ask for Model {
        async fn set(
            &self,
            features: UserFeatures,
            table: Option<&[u32]>,
        ) -> Result<(), ControlError> {
            self.sets.borrow_mut().push((features.bits(), table.map(<[u32]>::len)));
            if let Some(errno) = self.refuses_all {
                return Err(refused(errno));
            }
            if self.known.is_some_and(|known| features.bits() & !known != 0) {
                return Err(refused(Errno::OPNOTSUPP));
            }
            let mut state = self.state.borrow_mut();
            state.features = features;
            let per_cpu = features.contains(UserFeatures::DISPATCH_UPCALL_PER_CPU);
            if let (Some(table), Some(known), true) = (table, self.known, per_cpu)
                && known & 8 != 0
            {
                if let Some(errno) = self.refuses_tables {
                    return Err(refused(errno));
                }
                if table.is_empty() {
                    return Err(refused(Errno::INVAL));
                }
                state.per_cpu_pids = self.reports_table.then(|| table.to_vec());
            }
            Ok(())
        }

        async fn get(&self) -> Result<Datapath, ControlError> {
            Ok(self.state.borrow().clone())
        }

        async fn take_flow(&self, actions: &[u8]) -> Result<(), ControlError> {
            if let Some(errno) = self.refuses_all {
                return Err(refused(errno));
            }
            let mut kinds = ovs_wire::Attrs::new(actions).map(|attr| attr.unwrap().kind);
            if kinds.any(|kind| self.without_actions.contains(&kind)) {
                return Err(refused(Errno::INVAL));
            }
            Ok(())
        }
    }
}
