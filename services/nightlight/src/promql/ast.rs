//! What a query says: the tree, the types of its nodes, and where in the text each stands.

use super::functions::Function;
use crate::labels::{Matcher, Str};

/// Bytes `start..end` of the query.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: u32,
    /// Byte after the last.
    pub end: u32,
}

impl Span {
    /// From the start of this to the end of `other`.
    pub fn to(self, other: Span) -> Span {
        Span { start: self.start, end: other.end }
    }
}

/// Type of an expression's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// One number a step.
    Scalar,
    /// Series with at most one sample a step.
    Vector,
    /// Series with the samples of a range.
    Matrix,
    /// A string.
    String,
}

impl Type {
    /// The name in Prometheus' documentation and errors.
    pub fn documented(self) -> &'static str {
        match self {
            Type::Scalar => "scalar",
            Type::Vector => "instant vector",
            Type::Matrix => "range vector",
            Type::String => "string",
        }
    }

    /// The name in answers of the HTTP API.
    pub fn api(self) -> &'static str {
        match self {
            Type::Scalar => "scalar",
            Type::Vector => "vector",
            Type::Matrix => "matrix",
            Type::String => "string",
        }
    }
}

/// An expression.
#[derive(Clone, Debug)]
pub struct Expr {
    /// Where it stands.
    pub span: Span,
    /// What it is.
    pub kind: Kind,
    /// Height of the tree below, this node included: bounded, so that recursion over it is.
    pub height: u16,
}

/// Equal in meaning: where something stands does not count.
impl PartialEq for Expr {
    fn eq(&self, other: &Self) -> bool {
        self.kind == other.kind
    }
}

/// What an expression is.
#[derive(Clone, Debug)]
pub enum Kind {
    /// A number; `duration` when it was written as one (`5m` is 300).
    Number {
        /// Value.
        value: f64,
        /// Written as a duration.
        duration: bool,
    },
    /// A string.
    String(String),
    /// `name{matchers}`
    Selector(Selector),
    /// `name{matchers}[range]`
    Range {
        /// The series; it carries the modifiers.
        selector: Selector,
        /// How far back.
        range: Duration,
    },
    /// `expr[range:step]`
    Subquery(Box<Subquery>),
    /// `-expr` or `+expr`
    Unary {
        /// True for `-`.
        negative: bool,
        /// Operand.
        expr: Box<Expr>,
    },
    /// `lhs op rhs`
    Binary(Box<Binary>),
    /// `sum by (a) (expr)`
    Aggregate(Box<Aggregate>),
    /// `f(args)`
    Call {
        /// What is called.
        function: &'static Function,
        /// With what.
        args: Vec<Expr>,
    },
    /// `(expr)`
    Paren(Box<Expr>),
}

impl PartialEq for Kind {
    fn eq(&self, other: &Self) -> bool {
        use Kind::*;
        match (self, other) {
            // NaN equals itself here: this compares what was written.
            (Number { value: a, duration: x }, Number { value: b, duration: y }) => {
                a.to_bits() == b.to_bits() && x == y
            }
            (String(a), String(b)) => a == b,
            (Selector(a), Selector(b)) => a == b,
            (Range { selector: a, range: x }, Range { selector: b, range: y }) => a == b && x == y,
            (Subquery(a), Subquery(b)) => a == b,
            (Unary { negative: a, expr: x }, Unary { negative: b, expr: y }) => a == b && x == y,
            (Binary(a), Binary(b)) => a == b,
            (Aggregate(a), Aggregate(b)) => a == b,
            (Call { function: f, args: x }, Call { function: g, args: y }) => f.name == g.name && x == y,
            (Paren(a), Paren(b)) => a == b,
            _ => false,
        }
    }
}

/// A selector and its modifiers.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Selector {
    /// Name before the braces.
    pub name: Option<Str>,
    /// All conditions, the name's among them.
    pub matchers: Vec<Matcher>,
    /// `offset` and `@`.
    pub when: When,
    /// How the ends of a range are treated (`anchored`, `smoothed`).
    pub ends: Ends,
}

/// How rate-like functions treat the two ends of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Ends {
    /// Extrapolated.
    #[default]
    Plain,
    /// `anchored`: from the sample before the range.
    Anchored,
    /// `smoothed`: interpolated at the ends.
    Smoothed,
}

/// Which instant is read instead of the step's own.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct When {
    /// `offset`
    pub offset: Option<Duration>,
    /// `@`
    pub at: Option<At>,
}

/// `@`
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum At {
    /// Milliseconds since 1970.
    Ms(i64),
    /// `start()`
    Start,
    /// `end()`
    End,
}

/// `expr[range:step]`
#[derive(Clone, Debug, PartialEq)]
pub struct Subquery {
    /// Evaluated at each inner step.
    pub expr: Expr,
    /// How far back.
    pub range: Duration,
    /// Inner step; none: the default step.
    pub step: Option<Duration>,
    /// `offset` and `@`.
    pub when: When,
}

/// A duration, or arithmetic over durations.
#[derive(Clone, Debug, PartialEq)]
pub enum Duration {
    /// Milliseconds.
    Ms(i64),
    /// `step()`: the query's step.
    Step,
    /// `range()`: the query's range.
    Range,
    /// `-x` or `+x`
    Sign(bool, Box<Duration>),
    /// `a op b`; a number means seconds.
    Binary(Op, Box<Duration>, Box<Duration>),
    /// The smaller of two.
    Min(Box<Duration>, Box<Duration>),
    /// The greater of two.
    Max(Box<Duration>, Box<Duration>),
    /// `(x)`
    Paren(Box<Duration>),
}

/// Binary operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are what they are called")]
pub enum Op {
    Add,
    Sub,
    Mul,
    Div,
    Mod,
    Pow,
    Atan2,
    /// `</`: without what is above.
    TrimUpper,
    /// `>/`: without what is below.
    TrimLower,
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    And,
    Or,
    Unless,
}

impl Op {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Op::Add => "+",
            Op::Sub => "-",
            Op::Mul => "*",
            Op::Div => "/",
            Op::Mod => "%",
            Op::Pow => "^",
            Op::Atan2 => "atan2",
            Op::TrimUpper => "</",
            Op::TrimLower => ">/",
            Op::Eq => "==",
            Op::Ne => "!=",
            Op::Lt => "<",
            Op::Le => "<=",
            Op::Gt => ">",
            Op::Ge => ">=",
            Op::And => "and",
            Op::Or => "or",
            Op::Unless => "unless",
        }
    }

    /// How tightly it binds; more is tighter.
    pub fn precedence(self) -> u8 {
        match self {
            Op::Or => 1,
            Op::And | Op::Unless => 2,
            Op::Eq | Op::Ne | Op::Lt | Op::Le | Op::Gt | Op::Ge | Op::TrimUpper | Op::TrimLower => 3,
            Op::Add | Op::Sub => 4,
            Op::Mul | Op::Div | Op::Mod | Op::Atan2 => 5,
            Op::Pow => 6,
        }
    }

    /// `== != < <= > >=`
    pub fn is_comparison(self) -> bool {
        self.precedence() == 3 && !self.is_trim()
    }

    /// `</ >/`
    pub fn is_trim(self) -> bool {
        matches!(self, Op::TrimUpper | Op::TrimLower)
    }

    /// `and or unless`
    pub fn is_set(self) -> bool {
        self.precedence() <= 2
    }
}

/// A position that does not count when trees are compared.
#[derive(Clone, Copy, Debug, Default)]
pub struct Here(pub Span);

impl PartialEq for Here {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// `lhs op rhs`
#[derive(Clone, Debug, PartialEq)]
pub struct Binary {
    /// Operator.
    pub op: Op,
    /// Where the operator stands.
    pub at: Here,
    /// Left operand.
    pub lhs: Expr,
    /// Right operand.
    pub rhs: Expr,
    /// `bool`: a comparison answers 0 or 1.
    pub return_bool: bool,
    /// How series of both sides find each other.
    pub matching: Matching,
}

/// How many series of each side may match.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Card {
    /// One of each.
    #[default]
    OneToOne,
    /// `group_left`: many on the left.
    ManyToOne,
    /// `group_right`: many on the right.
    OneToMany,
}

/// How series of both sides find each other.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Matching {
    /// How many of each.
    pub card: Card,
    /// `on` (true) or `ignoring`.
    pub on: bool,
    /// Labels of `on` or `ignoring`.
    pub labels: Vec<Str>,
    /// Labels that the "one" side gives to the result.
    pub include: Vec<Str>,
    /// Value that stands for a missing left sample.
    pub fill_left: Option<f64>,
    /// Value that stands for a missing right sample.
    pub fill_right: Option<f64>,
}

/// Aggregation operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are what they are called")]
pub enum AggOp {
    Avg,
    Bottomk,
    Count,
    CountValues,
    Group,
    LimitRatio,
    Limitk,
    Max,
    Min,
    Quantile,
    Stddev,
    Stdvar,
    Sum,
    Topk,
}

impl AggOp {
    /// All, sorted by name.
    pub const ALL: [AggOp; 14] = [
        AggOp::Avg,
        AggOp::Bottomk,
        AggOp::Count,
        AggOp::CountValues,
        AggOp::Group,
        AggOp::LimitRatio,
        AggOp::Limitk,
        AggOp::Max,
        AggOp::Min,
        AggOp::Quantile,
        AggOp::Stddev,
        AggOp::Stdvar,
        AggOp::Sum,
        AggOp::Topk,
    ];

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            AggOp::Avg => "avg",
            AggOp::Bottomk => "bottomk",
            AggOp::Count => "count",
            AggOp::CountValues => "count_values",
            AggOp::Group => "group",
            AggOp::LimitRatio => "limit_ratio",
            AggOp::Limitk => "limitk",
            AggOp::Max => "max",
            AggOp::Min => "min",
            AggOp::Quantile => "quantile",
            AggOp::Stddev => "stddev",
            AggOp::Stdvar => "stdvar",
            AggOp::Sum => "sum",
            AggOp::Topk => "topk",
        }
    }

    /// Type of the first argument, if it takes one besides the series.
    pub fn param(self) -> Option<Type> {
        match self {
            AggOp::Bottomk | AggOp::Topk | AggOp::Limitk | AggOp::LimitRatio | AggOp::Quantile => {
                Some(Type::Scalar)
            }
            AggOp::CountValues => Some(Type::String),
            _ => None,
        }
    }

    /// Experimental in Prometheus.
    pub fn experimental(self) -> bool {
        matches!(self, AggOp::Limitk | AggOp::LimitRatio)
    }
}

/// `op by (labels) (param, expr)`
#[derive(Clone, Debug, PartialEq)]
pub struct Aggregate {
    /// Operator.
    pub op: AggOp,
    /// What is aggregated.
    pub expr: Expr,
    /// The parameter of `topk` and its like.
    pub param: Option<Expr>,
    /// `without` instead of `by`.
    pub without: bool,
    /// Labels of `by` or `without`.
    pub grouping: Vec<Str>,
}

impl Expr {
    /// What it is made of, from left to right.
    pub fn children(&self) -> Vec<&Expr> {
        match &self.kind {
            Kind::Number { .. } | Kind::String(_) | Kind::Selector(_) | Kind::Range { .. } => Vec::new(),
            Kind::Subquery(s) => vec![&s.expr],
            Kind::Unary { expr, .. } | Kind::Paren(expr) => vec![expr],
            Kind::Binary(b) => vec![&b.lhs, &b.rhs],
            Kind::Aggregate(a) => a.param.iter().chain([&a.expr]).collect(),
            Kind::Call { args, .. } => args.iter().collect(),
        }
    }

    /// The type of its value.
    pub fn ty(&self) -> Type {
        match &self.kind {
            Kind::Number { .. } => Type::Scalar,
            Kind::String(_) => Type::String,
            Kind::Selector(_) | Kind::Aggregate(_) => Type::Vector,
            Kind::Range { .. } | Kind::Subquery(_) => Type::Matrix,
            Kind::Unary { expr, .. } | Kind::Paren(expr) => expr.ty(),
            Kind::Binary(b) => match (b.lhs.ty(), b.rhs.ty()) {
                (Type::Scalar, Type::Scalar) => Type::Scalar,
                _ => Type::Vector,
            },
            Kind::Call { function, .. } => function.returns,
        }
    }

    /// Without parentheses around it.
    pub fn bare(&self) -> &Expr {
        let mut e = self;
        while let Kind::Paren(inner) = &e.kind {
            e = inner;
        }
        e
    }
}
