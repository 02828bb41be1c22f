"""The custom calls that a bundle may make, each with what it runs.

A custom call runs code of the jaxlib that is installed. These are the ones whose meaning JAX
keeps as long as `.exported` files; one of another name (a callback into Python takes an address
for an argument) is never run. Read with the standard library alone.
"""

from collections.abc import Mapping

_LAPACK = """
    cgees cgeev cgehrd cgeqrf cgesdd cgetrf cgtsv cheevd chetrd cpotrf ctrsm cungqr
    dgees dgeev dgehrd dgeqrf dgesdd dgetrf dgtsv dorgqr dpotrf dsyevd dsytrd dtrsm
    sgees sgeev sgehrd sgeqrf sgesdd sgetrf sgtsv sorgqr spotrf ssyevd ssytrd strsm
    zgees zgeev zgehrd zgeqrf zgesdd zgetrf zgtsv zheevd zhetrd zpotrf ztrsm zungqr
"""
_TARGETS = {
    "LAPACK, on a CPU": " ".join(f"lapack_{name}_ffi" for name in _LAPACK.split()),
    "a library of CUDA": """
        cusolver_geqrf_ffi cusolver_gesvd_ffi cusolver_gesvdj_ffi cusolver_getrf_ffi
        cusolver_orgqr_ffi cusolver_potrf_ffi cusolver_syevd_ffi cusolver_sytrd_ffi
        cusparse_gtsv2_ffi cu_threefry2x32_ffi cu_lu_pivots_to_permutation
    """,
    "a library of ROCm": """
        hipsolver_geqrf_ffi hipsolver_gesdd_ffi hipsolver_gesvd_ffi hipsolver_gesvdj_ffi
        hipsolver_getrf_ffi hipsolver_orgqr_ffi hipsolver_potrf_ffi hipsolver_syevd_ffi
        hipsolver_sytrd_ffi hip_threefry2x32_ffi hip_lu_pivots_to_permutation
    """,
    "XLA's own, on a TPU": "Eigh Qr ProductOfElementaryHouseholderReflectors LuDecomposition ApproxTopK",
    "a Pallas kernel that the program brings": "tpu_custom_call mosaic_gpu_v2",
    "nothing, a note to the compiler": """
        Sharding SPMDFullToShardShape SPMDShardToFullShape annotate_device_placement
        AllocateBuffer shape_assertion stablehlo.dynamic_approx_top_k
        stablehlo.dynamic_reduce_window stablehlo.dynamic_rng_bit_generator
        stablehlo.dynamic_top_k
    """,
}

# Target to what it runs.
ALLOWED: Mapping[str, str] = {
    target: what for what, targets in _TARGETS.items() for target in targets.split()
}
