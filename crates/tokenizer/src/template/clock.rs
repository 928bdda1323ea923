//! Dates for templates that write today's.

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// A moment taken apart.
struct Moment {
    year: i64,
    /// From 0.
    month: usize,
    /// From 1.
    day: i64,
    /// From 0, in the year.
    day_of_year: i64,
    /// From 0, Sunday.
    weekday: usize,
    hour: i64,
    minute: i64,
    second: i64,
}

impl Moment {
    /// The moment `seconds` after 1970-01-01 00:00:00.
    ///
    /// Days to a date after Howard Hinnant's "chrono-compatible low-level date algorithms": years
    /// are counted from March, so that the leap day is a year's last.
    fn new(seconds: i64) -> Self {
        // The years -29999 to 29999 or so; beyond them nothing a clock shows.
        let seconds = seconds.clamp(-1_000_000_000_000, 1_000_000_000_000);
        let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_from_march = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_from_march + 2) / 153;
        let month = (month_from_march + 2) % 12;
        let year = era * 400 + year_of_era + i64::from(month < 2);
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let day_of_year =
            if month < 2 { day_from_march - 306 } else { day_from_march + 59 + i64::from(leap) };
        Self {
            year,
            month: month as usize,
            day: day_from_march - (153 * month_from_march + 2) / 5 + 1,
            day_of_year,
            weekday: (days + 4).rem_euclid(7) as usize,
            hour: rest / 3600,
            minute: rest / 60 % 60,
            second: rest % 60,
        }
    }

    fn field(&self, directive: char) -> Option<String> {
        let hour12 = (self.hour + 11) % 12 + 1;
        Some(match directive {
            'Y' => self.year.to_string(),
            'y' => format!("{:02}", self.year.rem_euclid(100)),
            'm' => format!("{:02}", self.month + 1),
            'B' => MONTHS[self.month].to_owned(),
            'b' | 'h' => MONTHS[self.month][..3].to_owned(),
            'd' => format!("{:02}", self.day),
            'e' => format!("{:2}", self.day),
            'j' => format!("{:03}", self.day_of_year + 1),
            'A' => DAYS[self.weekday].to_owned(),
            'a' => DAYS[self.weekday][..3].to_owned(),
            'w' => self.weekday.to_string(),
            'u' => ((self.weekday + 6) % 7 + 1).to_string(),
            'H' => format!("{:02}", self.hour),
            'I' => format!("{hour12:02}"),
            'M' => format!("{:02}", self.minute),
            'S' => format!("{:02}", self.second),
            'p' => if self.hour < 12 { "AM" } else { "PM" }.to_owned(),
            'F' => format!("{}-{:02}-{:02}", self.year, self.month + 1, self.day),
            'T' => format!("{:02}:{:02}:{:02}", self.hour, self.minute, self.second),
            'R' => format!("{:02}:{:02}", self.hour, self.minute),
            '%' => "%".to_owned(),
            // The zone is the caller's: a moment does not know its name.
            'Z' | 'z' => String::new(),
            _ => return None,
        })
    }
}

/// The moment in the format of C's `strftime`; directives it does not know stay as they are. `%-d`
/// is `%d` without leading zeros.
pub(super) fn format(seconds: i64, format: &str) -> String {
    let moment = Moment::new(seconds);
    let mut out = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let bare = rest.as_str().starts_with('-');
        let directive = rest.clone().nth(usize::from(bare));
        let Some(field) = directive.and_then(|directive| moment.field(directive)) else {
            out.push('%');
            continue;
        };
        rest.nth(usize::from(bare));
        let shown = field.trim_start_matches(['0', ' ']);
        out.push_str(match (bare, shown) {
            (false, _) => &field,
            (true, "") => "0",
            (true, shown) => shown,
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::format;

    #[test]
    fn dates_by_hand() {
        let all = "%Y-%m-%d %H:%M:%S %a %A %b %B %j %y %I %p %w %u";
        // `date -u -d @N +"…"` says so.
        assert_eq!(format(0, all), "1970-01-01 00:00:00 Thu Thursday Jan January 001 70 12 AM 4 4");
        assert_eq!(
            format(1_709_210_096, all),
            "2024-02-29 12:34:56 Thu Thursday Feb February 060 24 12 PM 4 4"
        );
        assert_eq!(
            format(1_735_689_599, all),
            "2024-12-31 23:59:59 Tue Tuesday Dec December 366 24 11 PM 2 2"
        );
        assert_eq!(
            format(-1, all),
            "1969-12-31 23:59:59 Wed Wednesday Dec December 365 69 11 PM 3 3"
        );
    }

    #[test]
    fn padding_can_be_left_out_and_unknown_directives_stay() {
        assert_eq!(format(1_709_600_000, "%-d/%-m %e|%Q|%%|%"), "5/3  5|%Q|%|%");
        assert_eq!(format(0, "%-H:%-M"), "0:0");
    }

    #[test]
    fn far_moments_do_not_overflow() {
        for seconds in [i64::MIN, i64::MAX] {
            assert!(!format(seconds, "%F %T %j").is_empty());
        }
    }
}
