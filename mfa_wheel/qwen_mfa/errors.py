"""Every exception that this package raises on purpose.

Misuse of `qwen_mfa.scaled_dot_product_attention` raises what MLX raises for it: ``ValueError`` or
``TypeError``.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as type checkers know it, without the cost of importing typing

if TYPE_CHECKING:
    from pathlib import Path


class QwenMfaError(Exception):
    """Base of this package's errors.

    Examples:
        >>> try:
        ...     with qwen_mfa.use("warp"):
        ...         pass
        ... except qwen_mfa.QwenMfaError as error:
        ...     print(type(error).__name__)
        BackendError

    """


class LibraryError(QwenMfaError):
    """The native library cannot be used. Attention goes on through MLX.

    Attributes:
        path: The library's file.
        cause: What is wrong with it.
        remedy: What to do about it.

    Examples:
        >>> from pathlib import Path
        >>> print(qwen_mfa.LibraryError(Path("lib.so"), "it is empty", "Reinstall qwen-mfa"))
        lib.so: it is empty. Reinstall qwen-mfa

    """

    def __init__(self, path: Path, cause: str, remedy: str) -> None:
        super().__init__(f"{path}: {cause}. {remedy}")
        self.path = path
        self.cause = cause
        self.remedy = remedy


class NativeError(QwenMfaError):
    """A function of the native library returned an error code.

    Attributes:
        function: The C function.
        code: Its error code (1 arguments, 2 memory, 3 device, 4 compilation, 5 execution).
        text: The library's own text for that code.

    Examples:
        >>> error = qwen_mfa.NativeError("mfa_run", 2, "out of memory")
        >>> print(error)
        mfa_run failed with code 2: out of memory
        >>> error.code
        2

    """

    def __init__(self, function: str, code: int, text: str) -> None:
        super().__init__(f"{function} failed with code {code}: {text}")
        self.function = function
        self.code = code
        self.text = text


class WeightsError(QwenMfaError):
    """Model weights are missing, unreadable, or not those of the module that they are meant for.

    Examples:
        >>> from qwen_mfa import qwen_image
        >>> try:
        ...     qwen_image.load_block("no-such-folder", 0)
        ... except qwen_mfa.WeightsError as error:
        ...     print("no-such-folder" in str(error))
        True

    """


class HostError(QwenMfaError):
    """A host program's integration cannot be switched on or off. The host is left as it was.

    Examples:
        >>> issubclass(qwen_mfa.HostError, qwen_mfa.QwenMfaError)
        True

    """


class RunError(QwenMfaError):
    """``qwen-mfa run`` cannot start the command, or cannot write its report.

    Examples:
        >>> issubclass(qwen_mfa.RunError, qwen_mfa.QwenMfaError)
        True

    """


class DistributedError(QwenMfaError):
    """Several processes cannot make one picture: one ended, or they would not make the same."""


class BackendError(QwenMfaError):
    """A kernel that the user forces cannot run, or ``QWEN_MFA_BACKEND`` names none there is.

    Examples:
        >>> try:
        ...     with qwen_mfa.use("-mlx"):
        ...         pass
        ... except qwen_mfa.BackendError as error:
        ...     print("mlx cannot be forbidden" in str(error))
        True

    """


class MLXError(QwenMfaError):
    """MLX does not work here: it has no backend, or its backend has no driver.

    Examples:
        >>> issubclass(qwen_mfa.MLXError, qwen_mfa.QwenMfaError)
        True

    """


class MetalError(QwenMfaError):
    """Memory or an object of Metal is not what the Metal engine needs it to be."""


class SettingError(QwenMfaError):
    """An environment variable of ours has a value that means nothing.

    Attributes:
        variable: Its name.

    Examples:
        >>> error = qwen_mfa.SettingError("QWEN_MFA_NUM_THREADS", "many", "give a whole number")
        >>> print(error)
        QWEN_MFA_NUM_THREADS=many: give a whole number, or unset it

    """

    def __init__(self, variable: str, value: str, wanted: str) -> None:
        super().__init__(f"{variable}={value}: {wanted}, or unset it")
        self.variable = variable


class RefusedError(QwenMfaError):
    """A kernel cannot take one call, for what its arrays are and not for what it is itself.

    That call goes to MLX; the kernel goes on being used.

    Examples:
        >>> issubclass(qwen_mfa.RefusedError, qwen_mfa.QwenMfaError)
        True

    """
