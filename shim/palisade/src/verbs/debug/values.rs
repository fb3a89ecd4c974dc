//! Values of flags: spans of time and sizes.

use std::time::Duration;

/// Parses a span of time between 10 milliseconds and an hour: `500ms`, `5s`, `2m`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let expected =
        || format!("expected a time from 10ms to 1h, as in 500ms, 5s or 2m, not {text:?}");
    let units = [("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0), ("", 1.0)];
    let (number, unit) = units
        .into_iter()
        .find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)))
        .ok_or_else(expected)?;
    let seconds = number.parse::<f64>().map_err(|_| expected())? * unit;
    match (0.01..=3600.0).contains(&seconds) {
        true => Ok(Duration::from_secs_f64(seconds)),
        false => Err(expected()),
    }
}

/// Parses a size between a mebibyte and 64 gibibytes: `256M`, `2G`.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let expected = || format!("expected a size from 1M to 64G, as in 256M, not {text:?}");
    let units = [("K", 10), ("M", 20), ("G", 30), ("", 0)];
    let plain = text.trim_end_matches("iB").trim_end_matches('B');
    let (number, shift) = units
        .into_iter()
        .find_map(|(name, shift)| Some((plain.strip_suffix(name)?, shift)))
        .ok_or_else(expected)?;
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    bytes.filter(|bytes| (1 << 20..=64 << 30).contains(bytes)).ok_or_else(expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units_and_bounds() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("3"), Ok(Duration::from_secs(3)));
        for wrong in ["0", "0s", "-1s", "9ms", "2h", "NaN", "infs", "soon", "", "s"] {
            assert!(duration(wrong).unwrap_err().contains("10ms to 1h"), "{wrong}");
        }
    }

    #[test]
    fn sizes_have_units_and_bounds() {
        assert_eq!(size("256M"), Ok(256 << 20));
        assert_eq!(size("2GiB"), Ok(2 << 30));
        assert_eq!(size("1048576"), Ok(1 << 20));
        for wrong in ["0", "1K", "65G", "-1M", "99999999999999999999G", "", "M"] {
            assert!(size(wrong).unwrap_err().contains("1M to 64G"), "{wrong}");
        }
    }
}
