//! Whether the unwind information of a file can be used: a container writes it, and framehop carries
//! it out. Its expressions (DWARF 5, section 2.5) are programs that may go round for ever.

use gimli::{
    BaseAddresses, CallFrameInstruction, CallFrameInstructionIter, CieOrFde, EhFrame, EhFrameHdr,
    Encoding, EndianSlice, LittleEndian, Operation, UnwindSection,
};

/// The most bytes that describe one function, and of one expression: what linkers write has some
/// thousands at most, and some dozens.
const LONGEST_ENTRY: usize = 256 << 10;
const LONGEST_EXPRESSION: usize = 4 << 10;

type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// The functions that a section describes, of which each is described within a bound.
pub(crate) struct Checked {
    /// Where their descriptions are in the section, in ascending order.
    offsets: Vec<usize>,
}

impl Checked {
    /// Reads a whole section. `None` if something in it is none that a linker writes, or goes round.
    pub(crate) fn of(eh_frame: &[u8], bases: &BaseAddresses) -> Option<Self> {
        let section = section(eh_frame);
        let mut entries = section.entries(bases);
        let (mut offsets, mut common) = (Vec::new(), None);
        while let Some(entry) = entries.next().ok()? {
            // One that no function uses is not carried out.
            let CieOrFde::Fde(part) = entry else { continue };
            let function = part.parse(EhFrame::cie_from_offset).ok()?;
            let cie = function.cie();
            if function.entry_len() > LONGEST_ENTRY || cie.entry_len() > LONGEST_ENTRY {
                return None;
            }
            let encoding = cie.encoding();
            if common != Some(cie.offset()) {
                is_straight(&section, encoding, cie.instructions(&section, bases))?;
                common = Some(cie.offset());
            }
            is_straight(&section, encoding, function.instructions(&section, bases))?;
            offsets.push(function.offset());
        }
        offsets.is_sorted().then_some(Self { offsets })
    }

    /// Whether a table (`.eh_frame_hdr`) leads to these descriptions, and to no other place.
    pub(crate) fn has_all_of(&self, eh_frame_hdr: &[u8], bases: &BaseAddresses) -> bool {
        let header = EhFrameHdr::from(EndianSlice::new(eh_frame_hdr, LittleEndian));
        let Ok(header) = header.parse(bases, 8) else { return false };
        let Some(table) = header.table() else { return false };
        let mut entries = table.iter(bases);
        loop {
            match entries.next() {
                Ok(None) => return true,
                Ok(Some((_, description))) => match table.pointer_to_offset(description) {
                    Ok(offset) if self.offsets.binary_search(&offset.0).is_ok() => {}
                    _ => return false,
                },
                Err(_) => return false,
            }
        }
    }
}

fn section(eh_frame: &[u8]) -> EhFrame<Slice<'_>> {
    let mut section = EhFrame::new(eh_frame, LittleEndian);
    section.set_address_size(8);
    section
}

/// `None` if an expression is long, or has a branch: a branch can lead back, and also into the middle
/// of an operation.
fn is_straight<'a>(
    section: &EhFrame<Slice<'a>>,
    encoding: Encoding,
    mut instructions: CallFrameInstructionIter<'_, Slice<'a>>,
) -> Option<()> {
    while let Some(instruction) = instructions.next().ok()? {
        let (CallFrameInstruction::DefCfaExpression { expression }
        | CallFrameInstruction::Expression { expression, .. }
        | CallFrameInstruction::ValExpression { expression, .. }) = instruction
        else {
            continue;
        };
        if expression.length > LONGEST_EXPRESSION {
            return None;
        }
        let mut operations = expression.get(section).ok()?.operations(encoding);
        while let Some(operation) = operations.next().ok()? {
            if matches!(operation, Operation::Bra { .. } | Operation::Skip { .. }) {
                return None;
            }
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use object::read::{Object, ObjectSection, ReadCache};

    use super::*;

    /// A section with one function, whose frame an expression says.
    fn made(expression: &[u8]) -> Vec<u8> {
        // Version 1, "zR", factors 1 and -8, register 16, a pointer of 4 bytes from here.
        // The return address lies below the frame.
        let mut common = vec![0, 0, 0, 0, 1, b'z', b'R', 0, 1, 0x78, 16, 1, 0x1b, 0x90, 1];
        common.resize(20, 0);
        let cie = entry(&common);
        let mut function = u32::try_from(cie.len() + 4).unwrap().to_le_bytes().to_vec();
        function.extend([0, 0x10, 0, 0, 0x10, 0, 0, 0, 0]);
        // DW_CFA_def_cfa_expression
        function.extend([0x0f, u8::try_from(expression.len()).unwrap()]);
        function.extend(expression);
        [cie, entry(&function), vec![0; 4]].concat()
    }

    fn entry(bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        [&u32::try_from(bytes.len()).unwrap().to_le_bytes()[..], &bytes].concat()
    }

    fn bases() -> BaseAddresses {
        BaseAddresses::default().set_eh_frame(0x1000).set_eh_frame_hdr(0x2000)
    }

    fn is_taken(expression: &[u8]) -> bool {
        Checked::of(&made(expression), &bases()).is_some()
    }

    #[test]
    fn an_expression_that_may_go_round_is_not_carried_out() {
        // rsp + 8, and so much more where the program counter is behind a table's middle.
        let of_plt = [0x77, 8, 0x80, 0, 0x3f, 0x1a, 0x3b, 0x2a, 0x33, 0x24, 0x22];
        assert!(is_taken(&of_plt), "as linkers write for their tables of calls");
        assert!(!is_taken(&[0x2f, 0xfd, 0xff]), "DW_OP_skip back to itself");
        assert!(!is_taken(&[0x31, 0x28, 0xfc, 0xff]), "DW_OP_bra back to itself");
        // A skip over one byte lands in a constant that reads as the same.
        assert!(!is_taken(&[0x2f, 1, 0, 0x0c, 0x2f, 0xfd, 0xff, 0]), "a hidden one");
        assert!(!is_taken(&[0x0c]), "a constant without its bytes");
        assert!(Checked::of(&[7; 100], &bases()).is_none());
    }

    #[test]
    fn a_table_leads_to_what_was_read_only() {
        let section = made(&[0x77, 8]);
        let checked = Checked::of(&section, &bases()).unwrap();
        let table = |offset: i32| {
            // Version 1: pointers from here, a count, and pairs relative to the table.
            let mut table = vec![1, 0x1b, 0x03, 0x3b];
            table.extend((0x1000_i32 - 0x2004).to_le_bytes());
            table.extend(1_u32.to_le_bytes());
            table.extend(0x500_i32.to_le_bytes());
            table.extend((0x1000 + offset - 0x2000).to_le_bytes());
            table
        };
        let at = i32::try_from(checked.offsets[0]).unwrap();
        assert!(checked.has_all_of(&table(at), &bases()));
        assert!(!checked.has_all_of(&table(at + 9), &bases()), "into its middle");
        assert!(!checked.has_all_of(b"", &bases()));
    }

    #[test]
    fn what_compilers_write_is_taken() {
        let file = File::open(std::env::current_exe().unwrap()).unwrap();
        let cache = ReadCache::new(file);
        let file = object::File::parse(&cache).unwrap();
        let section = |name: &str| file.section_by_name(name).unwrap();
        let (frames, table) = (section(".eh_frame"), section(".eh_frame_hdr"));
        let bases = BaseAddresses::default()
            .set_eh_frame(frames.address())
            .set_eh_frame_hdr(table.address());
        let checked = Checked::of(frames.data().unwrap(), &bases).unwrap();
        assert!(checked.offsets.len() > 1000);
        assert!(checked.has_all_of(table.data().unwrap(), &bases));
    }
}
