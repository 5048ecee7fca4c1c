# find_package(welm): the targets welm::shared and welm::static, and welm::welm, which is the shared one unless
# WELM_USE_STATIC is set before or there is no other.
#
# Targets are visible in the folder that found them and in the folders below it, and cannot be changed there. Another
# find_package below it gives the same targets. It fails if it asks for others: for welm::welm of the other kind, or for
# an installation in another place.
#
# Everything is found relative to this file, PREFIX/share/cmake/welm, so that an installation can be moved.

get_filename_component(_welm_prefix "${CMAKE_CURRENT_LIST_DIR}/../../.." REALPATH)
set(_welm_lib_dirs lib lib64)
if(CMAKE_LIBRARY_ARCHITECTURE)
    list(APPEND _welm_lib_dirs "lib/${CMAKE_LIBRARY_ARCHITECTURE}")
endif()

# Forget what an earlier run found, perhaps under another prefix.
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

set(_welm_problem "")
foreach(_welm_kind SHARED STATIC)
    string(TOLOWER "welm::${_welm_kind}" _welm_target)
    if(TARGET ${_welm_target})
        get_target_property(_welm_known ${_welm_target} IMPORTED_LOCATION)
        if(NOT _welm_known STREQUAL WELM_${_welm_kind}_LIBRARY)
            set(_welm_problem "${_welm_target} is ${_welm_known} already, from an earlier find_package above this folder")
        endif()
    endif()
endforeach()

if(WELM_SHARED_LIBRARY AND NOT TARGET welm::shared)
    add_library(welm::shared SHARED IMPORTED)
    set_target_properties(welm::shared PROPERTIES
        IMPORTED_LOCATION "${WELM_SHARED_LIBRARY}"
        INTERFACE_INCLUDE_DIRECTORIES "${WELM_INCLUDE_DIR}")
endif()

if(WELM_STATIC_LIBRARY AND NOT TARGET welm::static)
    # The system libraries that Rust's standard library needs: rustc --print native-static-libs, without gcc_s. The
    # compiler adds gcc_s by itself, and with -static it has another name.
    if(APPLE)
        set(_welm_system "-framework CoreFoundation;iconv;System;c;m")
    elseif(UNIX)
        set(_welm_system "util;rt;pthread;m;dl;c")
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
elseif(DEFINED WELM_USE_STATIC AND TARGET welm::shared AND TARGET welm::static)
    get_target_property(_welm_known welm::welm INTERFACE_LINK_LIBRARIES)
    if(WELM_USE_STATIC AND NOT _welm_known STREQUAL "welm::static")
        set(_welm_problem "WELM_USE_STATIC is on, but")
    elseif(NOT WELM_USE_STATIC AND NOT _welm_known STREQUAL "welm::shared")
        set(_welm_problem "WELM_USE_STATIC is off, but")
    endif()
    if(_welm_problem MATCHES "^WELM_USE_STATIC")
        string(APPEND _welm_problem " welm::welm is ${_welm_known} already, from an earlier find_package above this "
            "folder; link welm::static or welm::shared by its name")
    endif()
endif()

if(_welm_problem)
    set(welm_FOUND FALSE)
    set(welm_NOT_FOUND_MESSAGE "${_welm_problem}")
elseif(NOT WELM_INCLUDE_DIR OR NOT TARGET welm::welm)
    set(welm_FOUND FALSE)
    set(welm_NOT_FOUND_MESSAGE "expected include/welm.h and a library under ${_welm_prefix}")
    if(WELM_USE_STATIC)
        string(APPEND welm_NOT_FOUND_MESSAGE "; WELM_USE_STATIC asks for the static one")
    endif()
endif()
unset(_welm_kind)
unset(_welm_known)
unset(_welm_target)
unset(_welm_problem)
unset(_welm_prefix)
unset(_welm_lib_dirs)
