"""Products of the Hessian with a direction V: the curvature along V, and what is added to a residual.

Both classes have `curvature`, the inner product of V and H V, and `add_to(R, scale)`, which adds scale * H V to R, an
array like W, in place. `add_to` is called once at the most.
"""

from softreg._inner_products import add_scaled, inner, squared_norm


class ArrayProduct:
    """The product H V as an array like W."""

    def __init__(self, V, product):
        self.product, self.curvature = product, inner(V, product)

    def add_to(self, R, scale):
        add_scaled(R, scale, self.product)


class SparseProduct:
    """The product over sparse rows as the n K numbers from which it is accumulated: K p may be many more.

    Parameters
    ----------
    design : CSRDesign
    P, sample_weight, scale, l2, V : as for `CSRDesign.hessian_product`
    """

    def __init__(self, design, P, sample_weight, scale, l2, V):
        self.design, self.l2, self.V = design, l2, V
        self.curvature, self.curved = design.curve(P, sample_weight, scale, V)
        if l2:  # the square of V may overflow where there is no penalty
            self.curvature += l2 * squared_norm(design.coef(V))

    def add_to(self, R, scale):
        self.curved *= self.curved.dtype.type(scale)
        self.design.add_accumulated(self.curved, R)
        if self.l2:
            add_scaled(self.design.coef(R), scale * self.l2, self.design.coef(self.V))
