//! How much kernel memory upcall sockets may take.

/// `SO_RCVBUF` stores double of what is asked for, as room for the kernel's own overhead
/// (`__sock_set_rcvbuf`, `net/core/sock.c`).
const DOUBLED: usize = 2;

/// What upcall sockets may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Budget {
    /// Bytes asked for on each socket, before the kernel doubles them.
    pub(crate) each: usize,
    /// Bytes of kernel memory that all of them together may take.
    pub(crate) total: Option<usize>,
}

impl Budget {
    /// Bytes to ask for on each of so many sockets.
    pub(crate) fn ask(self, sockets: usize) -> usize {
        let share = self.total.map(|total| total / DOUBLED / rounded(sockets));
        share.map_or(self.each, |share| self.each.min(share))
    }
}

/// A number of sockets that is not below `sockets` and at most a quarter above: sizes are set anew when
/// it changes, so that a thousand ports, added one by one, do not mean half a million calls.
fn rounded(sockets: usize) -> usize {
    let sockets = sockets.max(1);
    let step = (1 << sockets.ilog2()) / 4;
    sockets.next_multiple_of(step.max(1))
}

/// What to do about a receive buffer that is smaller than was asked for. `None`: it is not.
pub(crate) fn shortfall(asked: usize, reached: usize) -> Option<String> {
    let got = reached / DOUBLED;
    (got < asked).then(|| {
        format!(
            "upcall sockets have a receive buffer of {got} bytes each where {asked} were asked for: \
             it takes CAP_NET_ADMIN in the initial user namespace to exceed net.core.rmem_max; \
             'sysctl -w net.core.rmem_max={asked}' on the host allows it"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_together_stay_within_the_total_and_use_most_of_it() {
        let budget = Budget { each: 2 << 20, total: Some(16 << 20) };
        for sockets in 1..3000 {
            let taken = DOUBLED * budget.ask(sockets) * sockets;
            assert!(taken <= 16 << 20, "{sockets} sockets take {taken}");
            let wanted = (16 << 20).min(sockets * DOUBLED * (2 << 20));
            assert!(taken * 5 >= wanted * 3, "{sockets} sockets take {taken} only");
        }
        assert_eq!(Budget { total: None, ..budget }.ask(3000), 2 << 20);
    }

    #[test]
    fn sizes_change_rarely() {
        let changes = (1..1000).filter(|n| rounded(*n) != rounded(n + 1)).count();
        assert!(changes < 50, "{changes}");
    }

    #[test]
    fn a_shortfall_names_both_sizes_and_the_remedy() {
        assert_eq!(shortfall(1000, 2000), None);
        let text = shortfall(4 << 20, 2 * 212_992).unwrap();
        assert!(text.contains("212992") && text.contains("rmem_max=4194304"), "{text}");
    }
}
