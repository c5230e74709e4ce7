//! The functions of Prometheus 3: names, arguments, results. What they compute is in `engine`.

use super::ast::Type::{self, Matrix, Scalar, String, Vector};

/// A function's signature.
#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    /// Name.
    pub name: &'static str,
    /// Types of its arguments; the last may be left out or repeated, as `optional` says.
    pub args: &'static [Type],
    /// How many of the last arguments may be absent; `-1`: the last may come any number of times, or not.
    pub optional: i8,
    /// Type of its result.
    pub returns: Type,
    /// Behind `promql-experimental-functions` in Prometheus.
    pub experimental: bool,
}

const fn f(name: &'static str, args: &'static [Type], optional: i8, returns: Type) -> Function {
    Function { name, args, optional, returns, experimental: false }
}

const fn x(name: &'static str, args: &'static [Type], optional: i8, returns: Type) -> Function {
    Function { name, args, optional, returns, experimental: true }
}

const V: &[Type] = &[Vector];
const M: &[Type] = &[Matrix];

/// Sorted by name.
pub static FUNCTIONS: &[Function] = &[
    f("abs", V, 0, Vector),
    f("absent", V, 0, Vector),
    f("absent_over_time", M, 0, Vector),
    f("acos", V, 0, Vector),
    f("acosh", V, 0, Vector),
    f("asin", V, 0, Vector),
    f("asinh", V, 0, Vector),
    f("atan", V, 0, Vector),
    f("atanh", V, 0, Vector),
    f("avg_over_time", M, 0, Vector),
    f("ceil", V, 0, Vector),
    f("changes", M, 0, Vector),
    f("clamp", &[Vector, Scalar, Scalar], 0, Vector),
    f("clamp_max", &[Vector, Scalar], 0, Vector),
    f("clamp_min", &[Vector, Scalar], 0, Vector),
    f("cos", V, 0, Vector),
    f("cosh", V, 0, Vector),
    f("count_over_time", M, 0, Vector),
    f("day_of_month", V, 1, Vector),
    f("day_of_week", V, 1, Vector),
    f("day_of_year", V, 1, Vector),
    f("days_in_month", V, 1, Vector),
    f("deg", V, 0, Vector),
    f("delta", M, 0, Vector),
    f("deriv", M, 0, Vector),
    x("double_exponential_smoothing", &[Matrix, Scalar, Scalar], 0, Vector),
    x("end", &[], 0, Scalar),
    f("exp", V, 0, Vector),
    x("first_over_time", M, 0, Vector),
    f("floor", V, 0, Vector),
    f("histogram_avg", V, 0, Vector),
    f("histogram_count", V, 0, Vector),
    f("histogram_fraction", &[Scalar, Scalar, Vector], 0, Vector),
    f("histogram_quantile", &[Scalar, Vector], 0, Vector),
    x("histogram_quantiles", &[Vector, String, Scalar], -1, Vector),
    f("histogram_stddev", V, 0, Vector),
    f("histogram_stdvar", V, 0, Vector),
    f("histogram_sum", V, 0, Vector),
    f("hour", V, 1, Vector),
    f("idelta", M, 0, Vector),
    f("increase", M, 0, Vector),
    x("info", &[Vector, Vector], 1, Vector),
    f("irate", M, 0, Vector),
    f("label_join", &[Vector, String, String, String], -1, Vector),
    f("label_replace", &[Vector, String, String, String, String], 0, Vector),
    f("last_over_time", M, 0, Vector),
    f("ln", V, 0, Vector),
    f("log10", V, 0, Vector),
    f("log2", V, 0, Vector),
    x("mad_over_time", M, 0, Vector),
    f("max_over_time", M, 0, Vector),
    f("min_over_time", M, 0, Vector),
    f("minute", V, 1, Vector),
    f("month", V, 1, Vector),
    f("pi", &[], 0, Scalar),
    f("predict_linear", &[Matrix, Scalar], 0, Vector),
    f("present_over_time", M, 0, Vector),
    f("quantile_over_time", &[Scalar, Matrix], 0, Vector),
    f("rad", V, 0, Vector),
    x("range", &[], 0, Scalar),
    f("rate", M, 0, Vector),
    f("resets", M, 0, Vector),
    f("round", &[Vector, Scalar], 1, Vector),
    f("scalar", V, 0, Scalar),
    f("sgn", V, 0, Vector),
    f("sin", V, 0, Vector),
    f("sinh", V, 0, Vector),
    f("sort", V, 0, Vector),
    x("sort_by_label", &[Vector, String], -1, Vector),
    x("sort_by_label_desc", &[Vector, String], -1, Vector),
    f("sort_desc", V, 0, Vector),
    f("sqrt", V, 0, Vector),
    x("start", &[], 0, Scalar),
    f("stddev_over_time", M, 0, Vector),
    f("stdvar_over_time", M, 0, Vector),
    x("step", &[], 0, Scalar),
    f("sum_over_time", M, 0, Vector),
    f("tan", V, 0, Vector),
    f("tanh", V, 0, Vector),
    f("time", &[], 0, Scalar),
    f("timestamp", V, 0, Vector),
    x("ts_of_first_over_time", M, 0, Vector),
    x("ts_of_last_over_time", M, 0, Vector),
    x("ts_of_max_over_time", M, 0, Vector),
    x("ts_of_min_over_time", M, 0, Vector),
    f("vector", &[Scalar], 0, Vector),
    f("year", V, 1, Vector),
];

/// The function of that name.
pub fn find(name: &str) -> Option<&'static Function> {
    FUNCTIONS.binary_search_by(|f| f.name.cmp(name)).ok().map(|i| &FUNCTIONS[i])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted() {
        assert!(FUNCTIONS.windows(2).all(|w| w[0].name < w[1].name));
        assert!(FUNCTIONS.iter().all(|f| find(f.name) == Some(f)));
    }
}
