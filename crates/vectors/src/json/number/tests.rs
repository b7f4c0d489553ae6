//! Every number equals what `str::parse` gives, or is refused where JSON refuses it.

use super::*;
use std::fmt::Write;

/// A small generator (SplitMix64): the tests need millions of numbers, not good ones.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn finite_f32(&mut self) -> f32 {
        loop {
            let value = f32::from_bits(self.next() as u32);
            if value.is_finite() {
                return value;
            }
        }
    }

    fn digits(&mut self, count: u64, out: &mut String) {
        for _ in 0..count {
            out.push(char::from(b'0' + self.below(10) as u8));
        }
    }

    /// A number of any shape that the grammar allows.
    fn number(&mut self, digits_max: u64, exponent_max: u64, out: &mut String) {
        if self.below(2) == 0 {
            out.push('-');
        }
        match self.below(3) {
            0 => out.push('0'),
            _ => {
                out.push(char::from(b'1' + self.below(9) as u8));
                let count = self.below(digits_max);
                self.digits(count, out);
            }
        }
        if self.below(4) != 0 {
            out.push('.');
            let zeros = self.below(12) * self.below(2);
            out.extend((0..zeros).map(|_| '0'));
            let count = 1 + self.below(digits_max);
            self.digits(count, out);
        }
        if self.below(3) == 0 {
            out.push_str(["e", "E", "e+", "E-", "e-"][self.below(5) as usize]);
            write!(out, "{}", self.below(exponent_max)).unwrap();
        }
    }
}

#[track_caller]
fn check_with_tail(text: &str, body: &str) {
    let expected: f32 = text.parse().unwrap_or_else(|_| panic!("a bad test: {text}"));
    let parsed = parse_f32(body.as_bytes(), 0);
    if expected.is_finite() {
        let (value, end) = parsed.unwrap_or_else(|fault| panic!("{text}: {fault:?}"));
        assert_eq!(value.to_bits(), expected.to_bits(), "{text}: {value:e} and not {expected:e}");
        assert_eq!(end, text.len(), "{text}");
    } else {
        assert_eq!(parsed, Err(NumberFault::Overflow), "{text}");
    }
}

/// The number in the middle of a body, and as its last bytes.
#[track_caller]
fn check(text: &str) {
    check_with_tail(text, text);
    check_with_tail(text, &format!("{text}, 0.12345678"));
}

/// `count` numbers, each written by `write`.
fn check_many(seed: u64, count: usize, mut write: impl FnMut(&mut Random, &mut String)) {
    let mut random = Random(seed);
    let (mut text, mut body) = (String::new(), String::new());
    for _ in 0..count {
        text.clear();
        write(&mut random, &mut text);
        check_with_tail(&text, &text);
        body.clear();
        body.push_str(&text);
        body.push_str(",0.98765432");
        check_with_tail(&text, &body);
    }
}

#[test]
fn shortest_of_f32() {
    check_many(1, 200_000, |random, text| write!(text, "{}", random.finite_f32()).unwrap());
    check_many(2, 200_000, |random, text| write!(text, "{:e}", random.finite_f32()).unwrap());
}

#[test]
fn f32_printed_as_f64() {
    // What Python writes. Exponents near zero, as in real vectors, and all of them.
    check_many(3, 300_000, |random, text| {
        let value = f32::from_bits(0x3F80_0000 - (random.below(20 << 23) as u32));
        write!(text, "{}", f64::from(value)).unwrap();
    });
    check_many(4, 200_000, |random, text| write!(text, "{:e}", f64::from(random.finite_f32())).unwrap());
}

#[test]
fn any_shape() {
    check_many(5, 300_000, |random, text| random.number(8, 12, text));
    check_many(6, 300_000, |random, text| random.number(20, 45, text));
    check_many(7, 100_000, |random, text| random.number(30, 400, text));
    check_many(8, 20_000, |random, text| random.number(200, 1000, text));
}

#[test]
fn subnormals() {
    check_many(9, 100_000, |random, text| write!(text, "{:e}", f32::from_bits(random.below(1 << 24) as u32)).unwrap());
    check_many(10, 100_000, |random, text| {
        random.digits(1, text);
        text.push('.');
        let count = 1 + random.below(30);
        random.digits(count, text);
        write!(text, "e-{}", 36 + random.below(12)).unwrap();
    });
}

#[test]
fn the_middle_between_two_and_its_neighbours() {
    let middle = |random: &mut Random| {
        let value = random.finite_f32().abs();
        (f64::from(value) + f64::from(value.next_up().min(f32::MAX))) / 2.0
    };
    check_many(11, 200_000, |random, text| {
        let off = random.below(9) as i64 - 4;
        let value = f64::from_bits(middle(random).to_bits().wrapping_add_signed(off));
        write!(text, "{value:e}").unwrap();
    });
    // The middle itself to the last digit, and a hair above it.
    check_many(12, 20_000, |random, text| {
        write!(text, "{}", middle(random)).unwrap();
        if !text.contains('.') {
            text.push_str(".0");
        }
        if random.below(2) == 0 {
            text.push_str("00000000000000000000000001");
        }
    });
    check_many(13, 100_000, |random, text| write!(text, "{}", (1 << 24) + random.below(1 << 40)).unwrap());
}

#[test]
fn by_hand() {
    for text in [
        "0",
        "-0",
        "0.0",
        "-0.0",
        "0e999",
        "-0e-999",
        "0.000000000000000000000000000000000000000000000000000000000000000000000000001",
        "1",
        "10",
        "1e0",
        "1E+2",
        "1e-400",
        "1e-45",
        "7.006492321624085e-46",
        "7.0064923216240854e-46",
        "1.1754943508222875e-38",
        "1.17549429e-38",
        "1.1754942807573643e-38",
        "3.4028235e38",
        "3.4028234663852886e38",
        "3.4028235677973366e38",
        "3.4028235677973365e38",
        "340282346638528859811704183484516925440",
        "3.5e38",
        "1e39",
        "1e999",
        "-1e999",
        "1e99999999999999999999999999",
        "1e-99999999999999999999999999",
        "16777217",
        "16777217.0000000000000000000000000001",
        "18446744073709551615",
        "18446744073709551616",
        "99999999999999999999",
        "123456789012345678901234567890e-30",
        "0.123456789012345678901234567890",
        "0.00000000000000000001234567890123456789",
        "1.00000005960464477539062500000000000000000000000000000000000001",
        "1.00000005960464477539062499999999999999999999999999999999999999",
    ] {
        check(text);
    }
    // A point that ends a number of zeros, and zeros after it.
    check_with_tail("0.0000000000000000000000", "0.0000000000000000000000.000000000000000000000");
    check(&format!("0.{}1e100000", "0".repeat(100_000)));
    check(&format!("1{}e-100000", "0".repeat(100_000)));
    check(&"9".repeat(38));
    check(&"9".repeat(100_000));
}

#[test]
fn what_json_refuses() {
    let fault = |text: &str| parse_f32(text.as_bytes(), 0).unwrap_err();
    for text in ["", ",", ".5", "+1", "abc", "e5", "\"1\"", "null", "nan", "inf", "\u{664}"] {
        assert_eq!(fault(text), NumberFault::NotANumber, "{text}");
    }
    for text in ["NaN", "Infinity", "-Infinity"] {
        assert_eq!(fault(text), NumberFault::NonFiniteLiteral, "{text}");
    }
    for (text, place) in [
        ("-", 1),
        ("-a", 1),
        ("-.5", 1),
        ("1.", 2),
        ("1.e5", 2),
        ("1.x", 2),
        ("1e", 2),
        ("1e+", 3),
        ("01", 1),
        ("-00", 2),
        ("-NaN", 1),
    ] {
        assert!(matches!(fault(text), NumberFault::Malformed { at, .. } if at == place), "{text}: {:?}", fault(text));
        assert!(skip_number(text.as_bytes(), 0).is_err(), "{text}");
    }
    // What follows a number is not this module's business.
    assert_eq!(parse_f32(b"1x", 0), Ok((1.0, 1)));
    assert_eq!(parse_f32(b"1.5.5", 0), Ok((1.5, 3)));
    assert_eq!(parse_f32(b"[1.5]", 1), Ok((1.5, 4)));
    assert_eq!(parse_f32(b"1", 1), Err(NumberFault::NotANumber));
}

#[test]
fn bytes_that_are_no_digits() {
    for byte in (0..=u8::MAX).filter(|b| !b.is_ascii_digit() && !matches!(b, b'.' | b'e' | b'E')) {
        for digits in 1..=20 {
            let mut body = b"1".repeat(digits);
            body.push(byte);
            body.extend(b"99999999");
            let expected: f32 = "1".repeat(digits).parse().unwrap();
            assert_eq!(parse_f32(&body, 0), Ok((expected, digits)), "{byte:02x} after {digits} digits");
        }
    }
}

/// What [`parse_run`] makes of `numbers`, which have enough before and behind them.
fn run_of(numbers: &str) -> Vec<f32> {
    let body = format!("{}{numbers}, 1.5, {}", " ".repeat(40), " ".repeat(40));
    let mut out = [0.0; 8];
    let (at, count) = parse_run(body.as_bytes(), 40, &mut out);
    assert!(at >= 40 && at <= body.len());
    out[..count].to_vec()
}

#[test]
fn runs_of_usual_numbers_and_nothing_else() {
    // All or nothing, by the CPU.
    let is_there = !run_of("0.25, 0.5").is_empty();
    let usual = |numbers: &str, expected: &[f32]| {
        let found = run_of(numbers);
        assert_eq!(found, if is_there { expected } else { &[] }, "{numbers}");
        let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert!(!is_there || bits(&found) == bits(expected), "{numbers}");
    };
    usual("0.25, -0.5", &[0.25, -0.5, 1.5]);
    usual("-0.0, 0.000, -9.75", &[-0.0, 0.0, -9.75, 1.5]);
    usual("0.012345679104328156, -1.0000000000000002", &[0.012345679, -1.0, 1.5]);
    // Each stops the run where it stands.
    for odd in [
        "1",
        "12.5",
        "0.5e3",
        "1e5",
        "0.",
        ".5",
        "0.1234567890123456789012345",
        "00.5",
        "0.5.5",
        "0.5 ",
        "",
        "-",
        "--0.5",
    ] {
        usual(&format!("0.25, {odd}"), &[0.25]);
    }
    for byte in 0..=127u8 {
        let first = char::from(byte);
        if first != '-' && !first.is_ascii_digit() {
            usual(&format!("0.25, {first}0.5"), &[0.25]);
        }
        if !first.is_ascii_digit() {
            usual(&format!("0.25, {first}.5"), &[0.25]);
            usual(&format!("0.25, 0{first}5"), if first == '.' { &[0.25, 0.5, 1.5] } else { &[0.25] });
        }
        if first != ',' && !first.is_ascii_digit() {
            usual(&format!("0.25, 0.5{first} 0.5"), &[0.25]);
        }
    }
}

#[test]
fn runs_are_what_numbers_alone_are() {
    let mut random = Random(99);
    let mut text = String::new();
    for _ in 0..200_000 {
        text.clear();
        let digits = 1 + random.below(24);
        if random.below(2) == 0 {
            text.push('-');
        }
        write!(text, "{}.", random.below(2) * random.below(10)).unwrap();
        let zeros = random.below(digits);
        text.extend((0..zeros).map(|_| '0'));
        random.digits(digits - zeros, &mut text);
        if let [first, ..] = run_of(&text)[..] {
            assert_eq!(first.to_bits(), text.parse::<f32>().unwrap().to_bits(), "{text}");
        }
    }
}
