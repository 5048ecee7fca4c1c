# As long as the first number is 0, versions are compatible if the second one is the same. A program that asks for the
# first number only, or for a range, gets any version that matches.
set(PACKAGE_VERSION "0.1.0")
if(PACKAGE_FIND_VERSION_RANGE)
    if(PACKAGE_VERSION VERSION_GREATER_EQUAL PACKAGE_FIND_VERSION_MIN
            AND (PACKAGE_VERSION VERSION_LESS PACKAGE_FIND_VERSION_MAX
                OR (PACKAGE_FIND_VERSION_RANGE_MAX STREQUAL "INCLUDE"
                    AND PACKAGE_VERSION VERSION_EQUAL PACKAGE_FIND_VERSION_MAX)))
        set(PACKAGE_VERSION_COMPATIBLE TRUE)
    endif()
else()
    set(_welm_asked "${PACKAGE_FIND_VERSION_MAJOR}")
    if(PACKAGE_FIND_VERSION_COUNT GREATER 1)
        string(APPEND _welm_asked ".${PACKAGE_FIND_VERSION_MINOR}")
        string(REGEX MATCH "^[0-9]+\\.[0-9]+" _welm_series "${PACKAGE_VERSION}")
    else()
        string(REGEX MATCH "^[0-9]+" _welm_series "${PACKAGE_VERSION}")
    endif()
    if(PACKAGE_FIND_VERSION VERSION_EQUAL PACKAGE_VERSION)
        set(PACKAGE_VERSION_EXACT TRUE)
    endif()
    if(PACKAGE_FIND_VERSION VERSION_LESS_EQUAL PACKAGE_VERSION AND _welm_asked STREQUAL _welm_series)
        set(PACKAGE_VERSION_COMPATIBLE TRUE)
    endif()
    unset(_welm_asked)
    unset(_welm_series)
endif()
