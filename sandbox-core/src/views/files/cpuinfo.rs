//! `/proc/cpuinfo`

use crate::cpu_set::CpuSet;

/// Returns the blocks of these CPUs, as they are. A block ends with an empty line, and that of a
/// CPU begins with its number, on all architectures that have blocks (proc_cpuinfo(5)). Other
/// blocks are about the whole machine, and stay.
pub(super) fn blocks_of(kernels: &str, cpus: &CpuSet) -> String {
    let mut text = String::new();
    let mut wanted = true;
    let mut begins = true;
    for line in kernels.split_inclusive('\n') {
        if begins {
            wanted = processor(line).is_none_or(|cpu| cpus.contains(cpu));
        }
        if wanted {
            text.push_str(line);
        }
        begins = line == "\n";
    }
    text
}

/// Returns the number in a line such as `processor : 3`.
fn processor(line: &str) -> Option<u32> {
    let (name, number) = line.split_once(':')?;
    (name.trim() == "processor").then(|| number.trim().parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Linux writes on arm64, in short.
    const ARM64: &str = "processor\t: 0\nBogoMIPS\t: 50.00\nCPU part\t: 0xd0c\n\n\
        processor\t: 1\nBogoMIPS\t: 50.00\nCPU part\t: 0xd0c\n\n\
        processor\t: 12\nBogoMIPS\t: 50.00\nCPU part\t: 0xd0c\n\n";

    #[test]
    fn only_the_blocks_of_the_cpus_told_remain_and_stay_as_they_are() {
        let two = blocks_of(ARM64, &CpuSet::from_cpus([0, 12]));
        let second = "processor\t: 1\nBogoMIPS\t: 50.00\nCPU part\t: 0xd0c\n\n";
        assert_eq!(two, ARM64.replace(second, ""));
        assert_eq!(two.matches("processor").count(), 2);
        assert_eq!(blocks_of(ARM64, &CpuSet::from_cpus(0..64)), ARM64);
    }

    #[test]
    fn a_block_about_the_machine_stays() {
        let arm = format!("{ARM64}Hardware\t: BCM2835\nRevision\t: a02082\n");
        let one = blocks_of(&arm, &CpuSet::from_cpus([1]));
        assert!(one.starts_with("processor\t: 1\n"), "{one}");
        assert!(one.ends_with("Hardware\t: BCM2835\nRevision\t: a02082\n"), "{one}");
    }
}
