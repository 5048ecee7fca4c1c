#![no_main]
welm_fuzz::program!(pieces);
