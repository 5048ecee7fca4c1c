#![no_main]
welm_fuzz::program!(int8);
