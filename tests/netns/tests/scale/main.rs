//! Many ports: what each costs the daemon and the kernel in either dispatch mode, and that one more under
//! load costs no upcall; and that one of them does not keep the others from their turn.

mod fairness;
mod figures;
mod growth;
mod ladder;
mod process;
