//! The parts of a model by the names and layouts of its files.

use burn::module::Param;
use burn::tensor::{DType, Tensor};

use crate::base_dtype::wide;
use crate::layers::Norm;
pub use crate::reader::Layout;
use crate::{Adaptable, BaseDtype, LayerNorm, MoLoraLinear, TokenTable};

/// A module of a model's files, to be changed.
#[derive(Debug)]
pub struct ModuleMut<'a> {
    /// Its Hugging Face path.
    pub path: String,
    /// Its parameters.
    pub part: PartMut<'a>,
}

/// The parameters of a module.
#[derive(Debug)]
pub enum PartMut<'a> {
    /// Linear layers that the files hold as one, side by side along the outputs.
    Linear(Vec<&'a mut MoLoraLinear>, Layout),
    /// A table of embeddings, `[rows, D]`.
    Table(TableMut<'a>),
    /// The output head, `[V, D]`.
    Head(TableMut<'a>),
    /// A normalisation's scale and shift, `[D]`.
    Norm(&'a mut Param<Tensor<1>>, Option<&'a mut Param<Tensor<1>>>),
}

/// A table of rows.
#[derive(Debug)]
pub enum TableMut<'a> {
    /// Numbers.
    Numbers(&'a mut Param<Tensor<2>>),
    /// The table of a vocabulary, which may have fewer bits.
    Tokens(&'a mut TokenTable),
}

impl TableMut<'_> {
    /// Rows and columns.
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Self::Numbers(table) => table.dims(),
            Self::Tokens(table) => table.dims(),
        }
    }

    /// The type that it is kept in.
    pub fn dtype(&self) -> BaseDtype {
        match self {
            Self::Tokens(TokenTable::Blocks(_)) => BaseDtype::Q8,
            _ if self.kept().dtype() == DType::BF16 => BaseDtype::Bf16,
            _ => BaseDtype::F32,
        }
    }

    /// Its numbers in f32.
    pub fn wide(&self) -> Tensor<2> {
        match self {
            Self::Numbers(table) => wide(table.val()),
            Self::Tokens(table) => table.wide(),
        }
    }

    /// Its numbers as they are kept, those of fewer than 16 bits in f32.
    pub(crate) fn kept(&self) -> Tensor<2> {
        match self {
            Self::Numbers(table) => table.val(),
            Self::Tokens(table) => table.kept(),
        }
    }

    /// Puts another table in its place.
    pub fn set(&mut self, table: Param<Tensor<2>>) {
        match self {
            Self::Numbers(old) => **old = table,
            Self::Tokens(old) => **old = table.into(),
        }
    }
}

impl<'a> From<&'a mut Param<Tensor<2>>> for TableMut<'a> {
    fn from(table: &'a mut Param<Tensor<2>>) -> Self {
        Self::Numbers(table)
    }
}

impl<'a> From<&'a mut TokenTable> for TableMut<'a> {
    fn from(table: &'a mut TokenTable) -> Self {
        Self::Tokens(table)
    }
}

/// A model whose parts can be found by the names of its files.
///
/// Reading goes through a clone, which shares all tensors. By the defaults the parts are the linear
/// layers of [`Adaptable`], laid out as PyTorch's `Linear`.
pub trait BaseModel: Adaptable {
    /// Every module, the linear layers in the order of the forward pass.
    fn modules_mut(&mut self) -> Vec<ModuleMut<'_>> {
        let linears = self.linears_mut().into_iter();
        let module = |(path, linear)| ModuleMut {
            path,
            part: PartMut::Linear(vec![linear], Layout::OutIn),
        };
        linears.map(module).collect()
    }

    /// Gives a head that is the table of embeddings a table of its own, which then is a module.
    fn untie(&mut self) {}

    /// Removes what is attached outside of linear layers: the routers of layers, what sites share, tables
    /// that are trained whole.
    fn clear_routers(&mut self) {}

    /// Whether layers have routers.
    fn has_layer_routers(&self) -> bool {
        self.part().is_some() || !self.layer_routers().is_empty()
    }

    /// Whether a tensor of the files is a copy of the table of embeddings, which readers make again.
    fn copies_table(&self, _path: &str) -> bool {
        false
    }

    /// Factor on hidden states in front of the head that files of a head apart do not have.
    fn head_scale(&self) -> f64 {
        1.0
    }

    /// Linear layers that PEFT and transformers hold as one, by their paths: their adapters need all layers of
    /// a group, with one rank and one scale, or none.
    fn held_as_one(&self) -> Vec<Vec<String>> {
        Vec::new()
    }

    /// Whether a module of the files is left out of the model because nothing reads its output.
    fn leaves_out(&self, _path: &str) -> bool {
        false
    }
}

impl<'a> PartMut<'a> {
    /// A normalisation.
    pub(crate) fn norm(norm: &'a mut Norm) -> Self {
        match norm {
            Norm::Layer(norm) => Self::layer_norm(norm),
            Norm::Rms(norm) => Self::Norm(&mut norm.weight, None),
        }
    }

    /// Layer normalisation.
    pub(crate) fn layer_norm(norm: &'a mut LayerNorm) -> Self {
        let shift = norm.has_shift.then_some(&mut norm.beta);
        Self::Norm(&mut norm.gamma, shift)
    }
}
