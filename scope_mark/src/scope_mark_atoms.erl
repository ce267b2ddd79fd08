%% SPDX-License-Identifier: Apache-2.0
%% The chunk AtU8: atoms as {length, bytes}. Before OTP 28 a length is one byte; from OTP 28 the count is negative and
%% a length is a compact term (lib/compiler/src/beam_asm.erl, build_atom_table). Names stay binaries: no atom is made.
-module(scope_mark_atoms).
-export([read/1, add/2, index/2, name/2]).
-export_type([atoms/0]).

-record(atoms, {
    form :: bytes | compact,
    names :: tuple(),                    %% of binaries; index 1 is the module
    added = [] :: [binary()],            %% newest first
    index :: #{binary() => pos_integer()}
}).
-opaque atoms() :: #atoms{}.

-define(MAX_ATOMS, 1048576).

-spec read(binary()) -> atoms().
read(<<Count:32/signed, Rest/binary>>) when abs(Count) =< ?MAX_ATOMS, Count =/= 0 ->
    Form = case Count > 0 of true -> bytes; false -> compact end,
    Names = names(abs(Count), Form, Rest, []),
    Index = maps:from_list(lists:zip(Names, lists:seq(1, length(Names)))),
    #atoms{form = Form, names = list_to_tuple(Names), index = Index};
read(_) ->
    throw({bad_file, atom_table}).

names(0, _, <<>>, Acc) -> lists:reverse(Acc);
names(N, bytes, <<Size, Name:Size/binary, Rest/binary>>, Acc) when N > 0 ->
    names(N - 1, bytes, Rest, [Name | Acc]);
names(N, compact, Bin, Acc) when N > 0 ->
    case scope_mark_term:read(Bin) of
        {{0, Size}, Rest} when Size >= 0, Size =< byte_size(Rest) ->
            <<Name:Size/binary, Rest1/binary>> = Rest,
            names(N - 1, compact, Rest1, [Name | Acc]);
        _ -> throw({bad_file, atom_table})
    end;
names(_, _, _, _) -> throw({bad_file, atom_table}).

-spec name(integer(), atoms()) -> binary().
name(N, #atoms{names = Names}) when N >= 1, N =< tuple_size(Names) -> element(N, Names);
name(_, _) -> throw({bad_file, atom_index}).

%% The index of a name, which is added if it is not there.
-spec index(binary(), atoms()) -> {pos_integer(), atoms()}.
index(Name, #atoms{index = Index} = Atoms) ->
    case Index of
        #{Name := N} -> {N, Atoms};
        _ ->
            N = tuple_size(Atoms#atoms.names) + length(Atoms#atoms.added) + 1,
            {N, Atoms#atoms{added = [Name | Atoms#atoms.added], index = Index#{Name => N}}}
    end.

%% The chunk's new count, and what is appended to it: nothing that was there moves.
-spec add(binary(), atoms()) -> {binary(), binary()}.
add(<<Count:32/signed, _/binary>>, #atoms{form = Form, added = Added}) ->
    New = lists:reverse(Added),
    case Form of
        bytes -> {<<(Count + length(New)):32>>, << <<(byte_size(A)), A/binary>> || A <- New >>};
        compact ->
            Size = fun(A) -> scope_mark_term:write(0, byte_size(A)) end,
            {<<(Count - length(New)):32/signed>>, << <<(Size(A))/binary, A/binary>> || A <- New >>}
    end.
