//! The calendar of UTC, after Howard Hinnant's "chrono-compatible low-level date algorithms".

/// Year, month (1–12), day (1–31) of days since 1970-01-01.
pub(crate) fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + i64::from(month <= 2), month, doy - (153 * mp + 2) / 5 + 1)
}

fn is_leap(y: i64) -> bool {
    (y % 4 == 0 && y % 100 != 0) || y % 400 == 0
}

const BEFORE: [i64; 13] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334, 365];

/// The part of an instant (seconds since 1970) that the PromQL function `name` asks for. NaN for no instant.
pub(super) fn part(name: &str, seconds: f64) -> f64 {
    // Far beyond any calendar that means something, and within what the algorithm can count.
    if !seconds.is_finite() || seconds.abs() > 1e15 {
        return f64::NAN;
    }
    let s = seconds as i64;
    let (days, of_day) = (s.div_euclid(86_400), s.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let leap = i64::from(is_leap(year));
    let value = match name {
        "minute" => of_day / 60 % 60,
        "hour" => of_day / 3600,
        "day_of_week" => (days + 4).rem_euclid(7),
        "day_of_month" => day,
        "day_of_year" => BEFORE[month as usize - 1] + day + if month > 2 { leap } else { 0 },
        "days_in_month" => {
            BEFORE[month as usize] - BEFORE[month as usize - 1] + if month == 2 { leap } else { 0 }
        }
        "month" => month,
        _ => year,
    };
    value as f64
}

#[cfg(test)]
mod tests {
    use super::part;

    #[test]
    fn known_days() {
        let all = |t: f64| {
            ["year", "month", "day_of_month", "day_of_week", "day_of_year", "days_in_month", "hour", "minute"]
                .map(|n| part(n, t) as i64)
        };
        assert_eq!(all(0.0), [1970, 1, 1, 4, 1, 31, 0, 0]);
        assert_eq!(all(951_827_696.0), [2000, 2, 29, 2, 60, 29, 12, 34]);
        assert_eq!(all(1_735_689_599.0), [2024, 12, 31, 2, 366, 31, 23, 59]);
        assert_eq!(all(-1.0), [1969, 12, 31, 3, 365, 31, 23, 59]);
        assert!(part("year", f64::INFINITY).is_nan());
    }
}
