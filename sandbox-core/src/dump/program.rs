//! Whether processes with a seccomp program can come back.

use crate::error::{Error, FailureKind, Result};
use crate::sys::classic_bpf::{ARCHITECTURE, evaluate};
use crate::sys::seccomp_listener::Data;

/// Refuses a seccomp program by which a process that is brought back would be killed at its last
/// step: it gives up criu's memory, and returns as from a signal.
pub fn check(program: &[u8]) -> Result<()> {
    let calls = [("munmap", libc::SYS_munmap), ("rt_sigreturn", libc::SYS_rt_sigreturn)];
    let allows = |number: i64| {
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        let data = Data { number, architecture: ARCHITECTURE, ..Data::default() };
        let allowed = [libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_LOG];
        evaluate(program, &data).is_some_and(|result| allowed.contains(&(result & 0xffff_0000)))
    };
    let missing = calls.into_iter().find(|(_, number)| !program.is_empty() && !allows(*number));
    match missing {
        None => Ok(()),
        Some((name, _)) => Err(Error::new(
            FailureKind::State,
            format!(
                "linux.seccomp: the profile does not allow {name}, with which the processes of a \
             checkpoint come back"
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use crate::sys::classic_bpf::{IF_EQUAL, NUMBER_AT, Step};

    use super::*;

    #[test]
    fn a_program_without_what_a_restore_needs_is_refused_by_name() {
        assert!(check(&[]).is_ok());
        let refusing = |number: i64| -> Vec<u8> {
            let operand = u32::try_from(number).unwrap();
            let steps = [
                Step::load(NUMBER_AT),
                Step { code: IF_EQUAL, if_true: 0, if_false: 1, operand },
                Step::returns(libc::SECCOMP_RET_ERRNO | 1),
                Step::returns(libc::SECCOMP_RET_ALLOW),
            ];
            steps.iter().flat_map(Step::bytes).collect()
        };
        assert!(check(&refusing(libc::SYS_mount)).is_ok());
        for (name, number) in
            [("munmap", libc::SYS_munmap), ("rt_sigreturn", libc::SYS_rt_sigreturn)]
        {
            let error = check(&refusing(number)).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
