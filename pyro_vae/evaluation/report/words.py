"""Numbers in the words of a report."""

__all__ = ["as_number", "as_p_value"]


def as_p_value(p: float) -> str:
    """A p-value as people write it.

    Example:
        >>> as_p_value(0.0312), as_p_value(3e-200), as_p_value(0.0)
        ('p = 0.031', 'p < 0.0001', 'p < 0.0001')
    """
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"


def as_number(value: float) -> str:
    """A number to three digits, and all digits before the point.

    Example:
        >>> as_number(8791.4), as_number(0.66123), as_number(-0.5)
        ('8,791', '0.661', '-0.5')
    """
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"
