//! What a process has used of the CPUs.

use std::fs;

use anyhow::{Context as _, Result};

/// Length of a tick of `/proc/PID/stat` in nanoseconds (`USER_HZ` is 100 on this architecture).
const TICK_NS: u64 = 10_000_000;

/// CPU time of a process, all threads, since they were started; threads that have ended are not in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Time on a CPU in nanoseconds, exact for threads that sleep now (`/proc/PID/task/*/schedstat`).
    pub(crate) cpu_ns: u64,
    /// Time in user space, in ticks: for a share over many samples only.
    pub(crate) user_ns: u64,
    /// Time in the kernel, likewise.
    pub(crate) system_ns: u64,
    /// How often a thread of it has gone to sleep, and so was woken (`voluntary_ctxt_switches`).
    pub(crate) wakeups: u64,
}

impl Usage {
    /// Of process `pid` now.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let mut usage = Self::default();
        for task in fs::read_dir(format!("/proc/{pid}/task")).context("the contestant has ended")? {
            let task = task?.path();
            let run = fs::read_to_string(task.join("schedstat"))?;
            let run = run.split_whitespace().next().context("no schedstat (CONFIG_SCHED_INFO)")?;
            usage.cpu_ns += run.parse::<u64>()?;
            usage.wakeups += switches(&fs::read_to_string(task.join("status"))?)?;
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // Field 14 and 15; the second one is a name in brackets, which may have blanks.
        let (_, rest) = stat.rsplit_once(')').context("/proc/PID/stat without a name")?;
        let mut fields = rest.split_whitespace().skip(11);
        let mut ticks = || -> Result<u64> { Ok(fields.next().unwrap_or_default().parse()?) };
        (usage.user_ns, usage.system_ns) = (ticks()? * TICK_NS, ticks()? * TICK_NS);
        Ok(usage)
    }

    /// What was used since `before`.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            cpu_ns: self.cpu_ns - before.cpu_ns,
            user_ns: self.user_ns - before.user_ns,
            system_ns: self.system_ns - before.system_ns,
            wakeups: self.wakeups - before.wakeups,
        }
    }
}

fn switches(status: &str) -> Result<u64> {
    let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    Ok(count.context("no voluntary_ctxt_switches")?.trim().parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_time_goes_on() {
        let before = Usage::of(std::process::id()).unwrap();
        let mut sum = 0u64;
        while Usage::of(std::process::id()).unwrap().since(before).cpu_ns < 2_000_000 {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(sum > 0);
    }
}
