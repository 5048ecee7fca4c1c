# find_package(welm): the targets welm::shared and welm::static, and welm::welm, which is the shared one unless
# WELM_USE_STATIC is set before or there is no other.
#
# Everything is found from where this file lies, PREFIX/share/cmake/welm, so that an installation can be moved.

get_filename_component(_welm_prefix "${CMAKE_CURRENT_LIST_DIR}/../../.." REALPATH)
set(_welm_lib_dirs lib lib64)
if(CMAKE_LIBRARY_ARCHITECTURE)
    list(APPEND _welm_lib_dirs "lib/${CMAKE_LIBRARY_ARCHITECTURE}")
endif()

# Of this installation, whatever an earlier run or another prefix had.
unset(WELM_INCLUDE_DIR CACHE)
unset(WELM_SHARED_LIBRARY CACHE)
unset(WELM_STATIC_LIBRARY CACHE)
find_path(WELM_INCLUDE_DIR welm.h PATHS "${_welm_prefix}" PATH_SUFFIXES include NO_DEFAULT_PATH)
find_library(WELM_SHARED_LIBRARY
    NAMES "${CMAKE_SHARED_LIBRARY_PREFIX}welm${CMAKE_SHARED_LIBRARY_SUFFIX}"
    PATHS "${_welm_prefix}" PATH_SUFFIXES ${_welm_lib_dirs} NO_DEFAULT_PATH)
find_library(WELM_STATIC_LIBRARY
    NAMES "${CMAKE_STATIC_LIBRARY_PREFIX}welm${CMAKE_STATIC_LIBRARY_SUFFIX}"
    PATHS "${_welm_prefix}" PATH_SUFFIXES ${_welm_lib_dirs} NO_DEFAULT_PATH)
mark_as_advanced(WELM_INCLUDE_DIR WELM_SHARED_LIBRARY WELM_STATIC_LIBRARY)

if(WELM_SHARED_LIBRARY AND NOT TARGET welm::shared)
    add_library(welm::shared SHARED IMPORTED)
    set_target_properties(welm::shared PROPERTIES
        IMPORTED_LOCATION "${WELM_SHARED_LIBRARY}"
        INTERFACE_INCLUDE_DIRECTORIES "${WELM_INCLUDE_DIR}")
endif()

if(WELM_STATIC_LIBRARY AND NOT TARGET welm::static)
    # What Rust's own library needs of the system: rustc --print native-static-libs.
    if(APPLE)
        set(_welm_system "-framework CoreFoundation;iconv;System;c;m")
    elseif(UNIX)
        set(_welm_system "gcc_s;util;rt;pthread;m;dl;c")
    endif()
    add_library(welm::static STATIC IMPORTED)
    set_target_properties(welm::static PROPERTIES
        IMPORTED_LOCATION "${WELM_STATIC_LIBRARY}"
        INTERFACE_INCLUDE_DIRECTORIES "${WELM_INCLUDE_DIR}"
        INTERFACE_LINK_LIBRARIES "${_welm_system}")
    unset(_welm_system)
endif()

if(NOT TARGET welm::welm)
    if(TARGET welm::static AND (WELM_USE_STATIC OR NOT TARGET welm::shared))
        set(_welm_kind static)
    elseif(TARGET welm::shared AND NOT WELM_USE_STATIC)
        set(_welm_kind shared)
    endif()
    if(_welm_kind)
        add_library(welm::welm INTERFACE IMPORTED)
        set_target_properties(welm::welm PROPERTIES INTERFACE_LINK_LIBRARIES "welm::${_welm_kind}")
    endif()
    unset(_welm_kind)
endif()

if(NOT WELM_INCLUDE_DIR OR NOT TARGET welm::welm)
    set(welm_FOUND FALSE)
    set(welm_NOT_FOUND_MESSAGE "expected include/welm.h and a library under ${_welm_prefix}")
    if(WELM_USE_STATIC)
        string(APPEND welm_NOT_FOUND_MESSAGE "; WELM_USE_STATIC asks for the static one")
    endif()
endif()
unset(_welm_prefix)
unset(_welm_lib_dirs)
