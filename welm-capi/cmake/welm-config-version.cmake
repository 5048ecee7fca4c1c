# As long as the first number is 0, the second one says what is compatible.
set(PACKAGE_VERSION "0.1.0")
string(REGEX MATCH "^([0-9]+)\\.([0-9]+)" _welm_series "${PACKAGE_VERSION}")
if(PACKAGE_FIND_VERSION VERSION_EQUAL PACKAGE_VERSION)
    set(PACKAGE_VERSION_EXACT TRUE)
endif()
if(PACKAGE_FIND_VERSION VERSION_LESS_EQUAL PACKAGE_VERSION
        AND "${PACKAGE_FIND_VERSION_MAJOR}.${PACKAGE_FIND_VERSION_MINOR}" STREQUAL _welm_series)
    set(PACKAGE_VERSION_COMPATIBLE TRUE)
endif()
unset(_welm_series)
