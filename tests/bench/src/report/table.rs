//! Tables, for a terminal and for Markdown.

use super::columns::{Cell, Column};
use super::numbers::{Numbers, Spread};

/// Rows of text; the first is the head.
pub struct Table {
    rows: Vec<Vec<String>>,
}

/// The numbers of a cell, and their ratios where there is something to compare with.
pub fn tables(numbers: &Numbers, cell: &Cell) -> Vec<Table> {
    let subjects = numbers.subjects(cell.name);
    if subjects.is_empty() {
        return Vec::new();
    }
    let values = values(numbers, cell, &subjects);
    let bases: Vec<_> = cell.bases.iter().copied().filter(|base| subjects.contains(base)).collect();
    let has_others = subjects.iter().any(|subject| !bases.contains(subject)) || bases.len() > 1;
    if bases.is_empty() || !has_others { vec![values] } else { vec![values, ratios(numbers, cell, &subjects, &bases)] }
}

fn values(numbers: &Numbers, cell: &Cell, subjects: &[&str]) -> Table {
    let is_there =
        |column: &&Column| subjects.iter().any(|subject| numbers.spread(cell.name, subject, column.key).is_some());
    let columns: Vec<_> = cell.columns.iter().filter(is_there).collect();
    let head = [String::new()].into_iter().chain(columns.iter().map(|column| column.heading.to_owned())).collect();
    let row = |subject: &&str| {
        let value = |column: &&Column| numbers.spread(cell.name, subject, column.key).map_or("–".into(), shown);
        [(*subject).to_owned()].into_iter().chain(columns.iter().map(value)).collect()
    };
    Table { rows: [head].into_iter().chain(subjects.iter().map(row)).collect() }
}

fn ratios(numbers: &Numbers, cell: &Cell, subjects: &[&str], bases: &[&str]) -> Table {
    let compared = cell.columns.iter().filter(|column| column.is_compared);
    let pairs: Vec<_> = compared
        .flat_map(|column| bases.iter().map(move |base| (column, *base)))
        .filter(|(column, base)| {
            subjects.iter().any(|subject| numbers.ratio(cell.name, subject, column.key, base).is_some())
        })
        .collect();
    let heading = |(column, base): &(&Column, &str)| format!("{} × {base}", column.heading);
    let head = ["ratios".to_owned()].into_iter().chain(pairs.iter().map(heading)).collect();
    let row = |subject: &&str| {
        let ratio = |(column, base): &(&Column, &str)| {
            let ratio = numbers.ratio(cell.name, subject, column.key, base);
            ratio.map_or("–".into(), |ratio| format!("{ratio:.2}"))
        };
        [(*subject).to_owned()].into_iter().chain(pairs.iter().map(ratio)).collect()
    };
    Table { rows: [head].into_iter().chain(subjects.iter().map(row)).collect() }
}

fn shown(spread: Spread) -> String {
    let median = number(spread.median);
    if spread.rounds == 1 {
        return median;
    }
    format!("{median} [{}–{}]", number(spread.least), number(spread.most))
}

/// Three digits that matter, thousands apart.
fn number(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    match value.abs() {
        size if size >= 100.0 => thousands(&format!("{value:.0}")),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn thousands(digits: &str) -> String {
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits), |digits| ("-", digits));
    let mut text = String::from(sign);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

impl Table {
    pub fn in_text(&self) -> String {
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|text| text.chars().count()).max().unwrap_or(0)
        };
        let columns = self.rows.first().map_or(0, Vec::len);
        let widths: Vec<_> = (0..columns).map(width).collect();
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).enumerate().map(|(at, (text, width))| match at {
                0 => format!("  {text:<width$}"),
                _ => format!("  {text:>width$}"),
            });
            cells.collect::<String>() + "\n"
        };
        self.rows.iter().map(line).collect()
    }

    pub fn in_markdown(&self) -> String {
        let line = |row: &Vec<String>| format!("| {} |\n", row.join(" | "));
        let Some((head, rows)) = self.rows.split_first() else { return String::new() };
        let rule = format!("|---|{}\n", "---:|".repeat(head.len() - 1));
        line(head) + &rule + &rows.iter().map(line).collect::<String>()
    }
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn numbers_keep_three_digits_that_matter() {
        let all = [0.0, 0.219, 16.14, 221.7, 60_104.0, 1_234_567.0, -1_500.0].map(number);
        assert_eq!(all, ["0", "0.22", "16.1", "222", "60,104", "1,234,567", "-1,500"]);
    }
}
