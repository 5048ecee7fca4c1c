//! Every function of the header: called with nothing but NULL, and with a fault inside.

use std::ffi::CStr;
use std::ptr::{null, null_mut};

use crate::chat::*;
use crate::error::welm_status::{self, *};
use crate::error::*;
use crate::generate::*;
use crate::guard::tests::panicking;
use crate::list::welm_finish_reason;
use crate::load::*;
use crate::log::*;
use crate::model::*;
use crate::request::*;
use crate::score::*;
use crate::stats::*;
use crate::stream::*;
use crate::text::*;
use crate::tokens::*;

/// What a function returned to NULL.
#[derive(Debug, PartialEq)]
enum Returned {
    Status(welm_status),
    /// Whether it is NULL, 0, false, an empty text, or nothing.
    Nothing(bool),
}
use Returned::*;

type Error = *mut *mut welm_error;

/// A call with NULL for every pointer but the error's.
type Call = (&'static str, fn(Error) -> Returned);

/// Frees, and returns nothing.
macro_rules! frees {
    ($($function:ident)*) => {
        [$((stringify!($function), |_| {
            // SAFETY: NULL is allowed.
            unsafe { $function(null_mut()) };
            Nothing(true)
        })),*]
    };
}

/// Looks something up.
macro_rules! looks {
    ($($function:ident($($argument:expr),*) $is_nothing:expr;)*) => {
        [$((stringify!($function), |_| {
            // SAFETY: NULL is allowed.
            Nothing($is_nothing(unsafe { $function($($argument),*) }))
        })),*]
    };
}

/// Can fail.
macro_rules! tries {
    ($($function:ident($($argument:expr),*);)*) => {
        [$((stringify!($function), |error| {
            // SAFETY: NULL is allowed, as an error; the last one may be written to.
            Status(unsafe { $function($($argument,)* error) })
        })),*]
    };
}

fn calls() -> Vec<Call> {
    const NONE: usize = WELM_NUL_TERMINATED;
    let frees: [Call; 9] = frees! {
        welm_error_free welm_string_free welm_model_free welm_cancel_token_free welm_generation_free
        welm_stream_free welm_scores_free welm_logits_free welm_tokens_free
    };
    let looks: [Call; 23] = looks! {
        welm_error_code(null()) |s| s == WELM_OK;
        // SAFETY: never NULL.
        welm_error_message(null()) |p| unsafe { CStr::from_ptr(p) }.is_empty();
        welm_string_data(null(), null_mut()) <*const _>::is_null;
        welm_model_clone(null()) <*mut _>::is_null;
        welm_model_config(null()) <*const _>::is_null;
        welm_cancel_token_cancel(null()) |()| true;
        welm_cancel_token_is_cancelled(null()) |b: bool| !b;
        welm_generation_n_choices(null()) |n| n == 0;
        welm_generation_choice(null(), 0) <*const _>::is_null;
        welm_generation_finish_reason(null()) |r| r == welm_finish_reason::WELM_FINISH_NONE;
        welm_generation_usage(null()) <*const _>::is_null;
        welm_generation_seed(null()) |n| n == 0;
        welm_stream_cancel(null()) |()| true;
        welm_stream_seed(null()) |n| n == 0;
        welm_stream_prompt_tokens(null()) |n| n == 0;
        welm_scores_len(null()) |n| n == 0;
        welm_scores_get(null(), 0) <*const _>::is_null;
        welm_logits_data(null(), null_mut(), null_mut()) <*const _>::is_null;
        welm_tokens_data(null(), null_mut()) <*const _>::is_null;
        welm_model_token_bytes(null(), 1, null_mut()) <*const _>::is_null;
        welm_model_is_special(null(), 1) |b: bool| !b;
        welm_model_has_chat_template(null()) |b: bool| !b;
        welm_histogram_quantile_s(null(), 0.5) |x| x == 0.0;
    };
    let tries: [Call; 26] = tries! {
        welm_model_load(null(), null(), null_mut());
        welm_model_estimate(null(), null(), null_mut());
        welm_quantize(null(), null(), None, null_mut());
        welm_model_memory(null(), null_mut());
        welm_model_generate(null(), welm_prompt_text(null(), NONE), null(), null_mut());
        welm_model_generate_with(null(), welm_prompt_text(null(), NONE), null(), None, null_mut());
        welm_model_stream(null(), welm_prompt_text(null(), NONE), null(), null_mut());
        welm_stream_next(null(), null_mut());
        welm_stream_next_timeout(null(), 0, null_mut());
        welm_model_score(null(), null(), NONE, null(), null(), 1, null_mut());
        welm_model_score_pairs(null(), null(), null(), 1, null(), null_mut());
        welm_model_logits(null(), welm_prompt_tokens(null(), 1), 0, null_mut());
        welm_model_tokenize(null(), null(), NONE, false, null_mut());
        welm_model_detokenize(null(), null(), 1, null_mut());
        welm_model_token_id(null(), null(), NONE, null_mut());
        welm_model_chat_prompt(null(), null(), 1, true, null_mut());
        welm_model_chat_tokens(null(), null(), 1, true, null_mut());
        welm_model_chat_prompt_json(null(), null(), NONE, null_mut());
        welm_model_chat_tokens_json(null(), null(), NONE, null_mut());
        welm_model_chat(null(), null(), 1, null(), null_mut());
        welm_model_chat_json(null(), null(), NONE, null(), null_mut());
        welm_model_chat_stream(null(), null(), 1, null(), null_mut());
        welm_model_chat_stream_json(null(), null(), NONE, null(), null_mut());
        welm_model_check_health(null());
        welm_model_stats(null(), null_mut());
        welm_log_set_callback(3, None, null_mut());
    };
    // SAFETY: NULL is an error here.
    let inits: [Call; 3] = [
        ("welm_load_options_init", |_| Status(unsafe { welm_load_options_init(null_mut(), 8) })),
        // SAFETY: as above.
        ("welm_score_options_init", |_| Status(unsafe { welm_score_options_init(null_mut(), 8) })),
        // SAFETY: as above.
        ("welm_generate_options_init", |_| Status(unsafe { welm_generate_options_init(null_mut(), 8) })),
    ];
    let others: [Call; 2] = [
        ("welm_status_name", |_| {
            // SAFETY: never NULL.
            Nothing(unsafe { CStr::from_ptr(welm_status_name(-1)) } == c"unknown status")
        }),
        ("welm_cancel_token_new", |_| Nothing(welm_cancel_token_new().is_null())),
    ];
    [&frees[..], &looks, &tries, &inits, &others].concat()
}

/// Functions that cannot fail.
const PLAIN: [&str; 4] = ["welm_version", "welm_abi_version", "welm_prompt_text", "welm_prompt_tokens"];

#[test]
fn all_functions_are_here() {
    let header = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../include/welm.h")).unwrap();
    let declarations =
        header.lines().filter(|l| !l.starts_with([' ', '#', '/', '}']) && !l.starts_with("typedef"));
    let name = |line: &str| {
        let line = line.split_once('(')?.0;
        Some(line[line.rfind([' ', '*'])? + 1..].to_string())
    };
    let mut declared: Vec<String> = declarations.filter_map(name).collect();
    let mut called: Vec<String> = calls().iter().map(|(name, _)| name.to_string()).collect();
    called.extend(PLAIN.map(String::from));
    declared.sort();
    called.sort();
    assert_eq!(declared, called);
}

#[test]
fn null_is_an_error_or_nothing() {
    for (name, call) in calls() {
        let mut error = null_mut();
        match call(&mut error) {
            Nothing(is_nothing) => assert!(is_nothing || name == "welm_cancel_token_new", "{name}"),
            Status(WELM_OK) => assert_eq!(name, "welm_log_set_callback"), // takes the log from nobody
            Status(status) => {
                assert_eq!(status, WELM_NULL_POINTER, "{name}");
                if !name.ends_with("_init") {
                    // SAFETY: `call` has written it.
                    let message = unsafe { CStr::from_ptr(welm_error_message(error)) };
                    assert!(message.to_str().unwrap().ends_with("is NULL"), "{name}: {message:?}");
                }
            }
        }
        // SAFETY: NULL, or written by `call`.
        unsafe { welm_error_free(error) };
        call(null_mut()); // nobody wants the error
    }
}

#[test]
fn a_fault_inside_any_function_stays_there() {
    for (name, call) in calls() {
        let mut error = null_mut();
        match panicking(|| call(&mut error)) {
            Nothing(is_nothing) => assert!(is_nothing, "{name}"),
            Status(status) => {
                assert_eq!(status, WELM_PANIC, "{name}");
                if !name.ends_with("_init") {
                    // SAFETY: `call` has written it.
                    let message = unsafe { CStr::from_ptr(welm_error_message(error)) };
                    assert_eq!(message, c"panic: a test asked for this", "{name}");
                }
            }
        }
        // SAFETY: NULL, or written by `call`.
        unsafe { welm_error_free(error) };
    }
}
