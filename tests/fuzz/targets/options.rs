#![no_main]
welm_fuzz::program!(options);
